#include "trainer/training.h"

#include <nlohmann/json.hpp>

#include "comm/agreement.h"

namespace lockstep {
namespace {

Sharding sharding(const TrainConfig& config, const Communicator& communicator) {
  return Sharding(ParameterTable(config.model).size(),
                  {.virtual_workers = config.virtual_workers,
                   .rank = communicator.rank(),
                   .workers = communicator.size(),
                   .replicated = config.reduce == Reduce::all_reduce});
}

LossScaler loss_scaler(const TrainConfig& config) {
  if (config.loss_scale) return LossScaler::fixed(*config.loss_scale);
  return config.precision == DType::fp16 ? LossScaler::dynamic() : LossScaler::fixed(1);
}

// A rehearsal notes what is enqueued, which a launch of a graph would hide.
bool uses_graph(const TrainConfig& config) {
  return config.cuda_graph && config.device == Device::cuda && Rehearsal::current() == nullptr;
}

}  // namespace

BatchPlan batch_plan(const TrainConfig& config, const Communicator& communicator) {
  return {config.batch_size,   config.micro_batch_size, config.model.context_length,
          communicator.rank(), communicator.size(),     config.virtual_workers};
}

Sampler sampler(const TrainConfig& config, const Dataset& dataset) {
  return {dataset.split("train").size(), config.model.context_length, config.batch_size,
          config.seed};
}

Transformer::Options model_options(const TrainConfig& config, int64_t padded_size) {
  return {.device = config.device,
          .precision = config.precision,
          .micro_batch_size = config.micro_batch_size,
          .recompute = config.recompute,
          .seed = config.seed,
          .padded_size = padded_size};
}

Training::Training(const TrainConfig& config, Communicator& communicator, const Dataset& dataset,
                   const Start& start, const std::atomic<bool>& stop_requested)
    : Training(config, communicator,
               std::make_unique<BatchLoader>(dataset.split("train"), sampler(config, dataset),
                                             batch_plan(config, communicator)),
               stop_requested) {
  load(start);
}

Training::Training(const TrainConfig& config, Communicator& communicator,
                   std::unique_ptr<BatchSource> batches, const std::atomic<bool>& stop_requested)
    : config_(config),
      communicator_(communicator),
      sharding_(sharding(config, communicator)),
      batches_(std::move(batches)),
      schedule_(config.schedule, config.steps),
      scaler_(loss_scaler(config)),
      model_(config.model, model_options(config, sharding_.padded_size())),
      optimizer_(model_.table(), config.optimizer, model_.weights(), sharding_.updated()),
      weights_registered_(communicator.register_memory(model_.padded_weights())),
      reducer_(communicator, model_.stream(), model_.padded_gradients(), sharding_,
               model_.table().group_ranges(), config.gradient_dtype),
      step_(model_, *batches_, sharding_, reducer_, optimizer_, scaler_, schedule_, communicator,
            stop_requested,
            {.clip_norm = config.optimizer.clip_norm, .graph = uses_graph(config)}) {}

Training::Drain::~Drain() {
  try {
    stream.synchronize();
  } catch (const DeviceError&) {  // the first one is on its way already
  }
}

void Training::load(const Start& start) {
  Stream& stream = model_.stream();
  if (!start.checkpoint) {
    // Through the gradients' memory, where the CPU has it: nothing else needs it yet.
    const bool on_cpu = config_.device == Device::cpu;
    const Buffer own =
        on_cpu ? Buffer() : Buffer(DType::fp32, model_.gradients().shape(), Device::cpu);
    const Tensor weights = on_cpu ? model_.gradients() : own.tensor();
    initialize(model_.table(), config_.model, config_.seed, weights);
    for (const AdamW::Piece& piece : optimizer_.pieces()) {
      copy(piece.master, weights.slice(piece.range.begin, piece.range.end), stream);
    }
    stream.synchronize();
  } else {
    const Checkpoint& checkpoint = *start.checkpoint;
    run_together(communicator_, [&] {
      for (const AdamW::Piece& piece : optimizer_.pieces()) {
        checkpoint.read(FlatKind::weights, piece.range.begin, piece.master);
        if (!start.resumes) continue;
        checkpoint.read(FlatKind::exp_avg, piece.range.begin, piece.exp_avg);
        checkpoint.read(FlatKind::exp_avg_sq, piece.range.begin, piece.exp_avg_sq);
      }
      if (start.resumes) state_ = trainer_state_from_json(checkpoint.info().trainer_state);
    });
  }
  optimizer_.publish_weights(stream);
  gather_shards(sharding_, model_.padded_weights(), communicator_, stream);
  if (start.resumes) scaler_.restore(state_.loss_scale, state_.clean_steps);
}

std::vector<CheckpointSlice> Training::shard() {
  model_.stream().synchronize();
  std::vector<CheckpointSlice> slices;
  for (const Range& range : sharding_.shard()) {
    for (const AdamW::Piece& piece : optimizer_.pieces()) {
      if (range.begin < piece.range.begin || range.end > piece.range.end) continue;
      const AdamW::Piece own = piece.slice(range);
      slices.push_back({range, own.master, own.exp_avg, own.exp_avg_sq});
    }
  }
  return slices;
}

Training::Memory Training::memory() const {
  return {.model = model_.memory(),
          .optimizer = optimizer_.memory_bytes(),
          .reduction = reducer_.memory_bytes(),
          .inputs = step_.device_bytes()};
}

}  // namespace lockstep
