#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/profile.h"
#include "kernels/lap.h"
#include "kernels/reduce.h"

namespace lockstep {
namespace {

Shape seconds_shape(const kernels::StepNumbers& places) {
  return words<double>(nullptr, places.workers, Device::cpu).shape();
}

}  // namespace

TrainStep::TrainStep(Transformer& model, BatchSource& batches, const Sharding& sharding,
                     GradientReducer& reducer, AdamW& optimizer, LossScaler& scaler,
                     const LrSchedule& schedule, Communicator& communicator,
                     const std::atomic<bool>& stop_requested, const Options& options)
    : model_(model),
      batches_(batches),
      sharding_(sharding),
      reducer_(reducer),
      optimizer_(optimizer),
      scaler_(scaler),
      schedule_(schedule),
      communicator_(communicator),
      stop_requested_(stop_requested),
      options_(options),
      staging_(model.options().device, batches.plan().worker_sequences(),
               batches.plan().sequence_length),
      inputs_(model.options().device),
      decision_(model.options().device),
      places_{sharding.workers(), sharding.virtual_workers_each(), sharding.num_buckets()},
      numbers_(DType::int32,
               words<double>(nullptr, places_.workers * places_.size(), Device::cpu).shape(),
               model.options().device),
      host_seconds_(Buffer::pinned(DType::int32, seconds_shape(places_), model.options().device)) {
  if (model.options().device != Device::cpu) {
    seconds_ = Buffer(DType::int32, seconds_shape(places_), model.options().device);
  }
  std::vector<Range> slices;
  for (const Sharding::Slice& slice : sharding.slices()) slices.push_back(slice.range);
  for (const Range& range : slices) largest_slice_ = std::max(largest_slice_, range.size());
  num_slices_ = static_cast<int64_t>(slices.size());
  const Tensor host_slices = words(slices.data(), num_slices_, Device::cpu);
  slices_ = Buffer(DType::int32, host_slices.shape(), model.options().device);
  copy(slices_.tensor(), host_slices, model.stream());
  model.stream().synchronize();
}

TrainStep::~TrainStep() {
  if (!started_ || model_.stream().device() == Device::cpu) return;
  graph_.reset();  // for which NCCL waits before it gives up
  reducer_.cancel();
  communicator_.cancel();
  try {
    model_.stream().synchronize();
  } catch (const DeviceError&) {  // what went wrong first is on its way already
  }
}

void TrainStep::stage(int64_t step) {
  const ProfileScope scope(Span::Kind::stage, "batch");
  staging_.stage(batches_.batch(step));
  staged_step_ = step;
}

void TrainStep::start(const TrainerState& state) {
  CHECK(!std::exchange(started_, true), "a step has been started already");
  const auto tokens = static_cast<double>(batches_.plan().step_tokens());
  Stream& stream = model_.stream();
  if (staged_step_ != state.step) stage(state.step);
  inputs_.host() = {
      .step = static_cast<uint64_t>(state.step),
      .stop = stop_requested_ ? 1.0 : 0.0,
      .clip = {.loss_scale = scaler_.scale(), .clip_norm = options_.clip_norm},
      .adam = optimizer_.next_step(schedule_.learning_rate(state.updates), state.updates),
      .gradient_scale = static_cast<float>(scaler_.scale() / tokens)};
  inputs_.upload(stream);
  batch_ = staging_.take(stream);
  batch_.step = &inputs_.there()->step;

  // The kernels of a graph cannot be timed one by one.
  if (!options_.graph || !warm_ || Profile::active()) {
    enqueue();
    warm_ = true;
  } else {
    if (workspace_moves_ != stream.num_workspace_moves()) graph_.reset();
    if (!graph_) {
      graph_.emplace(stream, [&] { enqueue(); });
      workspace_moves_ = stream.num_workspace_moves();
    }
    graph_->launch(stream);
    const std::string what = fmt::format("an operation of step {}", state.step + 1);
    reducer_.launched(what, stream);
    communicator_.launched(what, stream);
  }
  if (stream.device() == Device::cuda) stage(state.step + 1);  // while it computes
}

// Everything between the inputs and the decision. What changes from step to step stands in memory.
void TrainStep::enqueue() {
  Stream& stream = model_.stream();
  const BatchPlan& plan = batches_.plan();
  Inputs* const inputs = inputs_.there();
  auto* const numbers = static_cast<double*>(numbers_.tensor().data());
  double* const own = numbers + sharding_.rank() * places_.size();
  kernels::set_zero(words(own, places_.size(), stream.device()), stream);
  double* const own_seconds = numbers + places_.seconds(sharding_.rank());
  kernels::lap(own_seconds, stream);

  // 1. Forward and backward of this worker's virtual workers, one micro-batch after the other;
  //    gradients of the mean loss, times the loss scale, add up in fp32. The last backward of each
  //    hands the gradients to the reducer, group by group as they are complete.
  int64_t sequence = 0;
  for (int v = 0; v < plan.virtual_workers_each(); v++) {
    model_.zero_gradients();
    for (int64_t a = 1; a <= plan.accumulation(); a++) {
      const Batch micro_batch = batch_.slice(sequence, sequence + plan.micro_batch_size);
      sequence += plan.micro_batch_size;
      model_.forward(micro_batch, &inputs->gradient_scale, own + places_.loss(0, v));
      model_.backward([&](int group) {
        if (a == plan.accumulation()) reducer_.layer_ready(group);
      });
    }
  }
  kernels::lap(own_seconds, stream);

  // 2. Sum over virtual workers, in the order of docs/determinism.md. Each worker gets the ranges
  //    that it updates.
  reducer_.finish();

  // 3. Every worker tells all others its losses, the squares of its slices, and whether to stop,
  //    and how long it computed.
  kernels::add_sums_of_squares(own + places_.squares(0, 0, 0), model_.gradients(),
                               static_cast<const Range*>(slices_.tensor().data()), num_slices_,
                               largest_slice_, stream);
  // The CPU has computed by now, and the host's inputs are the only ones.
  if (stream.device() == Device::cpu) inputs->stop = stop_requested_ ? 1 : 0;
  copy(words(own, 1, stream.device()), words(&inputs->stop, 1, stream.device()), stream);
  communicator_.set_purpose("of losses and gradient norms");
  communicator_.all_gather(numbers_.tensor(), stream);

  // 4. Undo the loss scale before anything looks at a magnitude; clip. A gradient that is not
  //    finite never reaches the weights.
  const Tensor seconds = (seconds_.size_bytes() > 0 ? seconds_ : host_seconds_).tensor();
  kernels::decide_step(decision_.there(), &inputs->adam, static_cast<double*>(seconds.data()),
                       numbers, places_, &inputs->clip, stream);

  // 5. Update this worker's ranges, and give every worker the new weights.
  optimizer_.update(model_.gradients(), &inputs->adam, stream);
  gather_shards(sharding_, model_.padded_weights(), communicator_, stream);
  decision_.download(stream);
  if (seconds_.size_bytes() > 0) copy(host_seconds_.tensor(), seconds_.tensor(), stream);
}

StepResult TrainStep::finish(TrainerState& state) {
  CHECK(std::exchange(started_, false), "no step has been started");
  model_.stream().synchronize();
  reducer_.check();
  communicator_.check();
  const kernels::StepDecision& decision = decision_.host();
  const auto tokens = batches_.plan().step_tokens();
  const auto* seconds = static_cast<const double*>(host_seconds_.tensor().data());
  const StepResult result{.step = state.step + 1,
                          .loss = decision.loss_sum / static_cast<double>(tokens),
                          .grad_norm = std::sqrt(decision.sum_of_squares) / scaler_.scale(),
                          .learning_rate = schedule_.learning_rate(state.updates),
                          .loss_scale = scaler_.scale(),
                          .skipped = decision.finite == 0,
                          .stop = decision.stop != 0,
                          .worker_seconds = {seconds, seconds + places_.workers}};

  if (result.skipped) {
    state.lost_steps = scaler_.can_lower() ? 0 : state.lost_steps + 1;
    state.skipped_steps++;
    scaler_.overflowed();
  } else {
    state.updates++;
    state.lost_steps = 0;
    scaler_.succeeded();
  }
  state.step++;
  state.tokens += tokens;
  state.loss_scale = scaler_.scale();
  state.clean_steps = scaler_.clean_steps();
  return result;
}

int64_t TrainStep::device_bytes() const {
  return staging_.device_bytes() + inputs_.device_bytes() + decision_.device_bytes() +
         (numbers_.device() == Device::cpu
              ? 0
              : numbers_.size_bytes() + seconds_.size_bytes() + slices_.size_bytes());
}

}  // namespace lockstep
