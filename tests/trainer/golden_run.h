#pragma once
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "kernels/reduce.h"
#include "model/config.h"
#include "tests/trainer/alone.h"
#include "trainer/train_step.h"

namespace lockstep {

// One of the tiny models of tests/golden/model, with its sequences in the order that they were
// trained on there.
struct Golden {
  explicit Golden(const std::string& name)
      : index(nlohmann::json::parse(
            read_file(std::string(LOCKSTEP_GOLDEN) + "/model/" + name + ".json"))),
        blob(read_file(std::string(LOCKSTEP_GOLDEN) + "/model/" + name + ".bin")),
        model(model_config_from_json(index["model"])) {}

  // Fills the flat weights (P) fp32, whose tensors are the blob's first, in bf16.
  void read_weights(const Tensor& flat) const {
    const auto* bits = reinterpret_cast<const bf16*>(blob.data());
    for (int64_t i = 0; i < flat.size(); i++) flat.as<float>()[i] = to_float(bits[i]);
  }

  nlohmann::json index;
  std::string blob;
  ModelConfig model;
};

class GoldenBatches : public BatchSource {
 public:
  GoldenBatches(const Golden& golden, const BatchPlan& plan)
      : BatchSource(plan),
        rows_(golden.index["training"]["sequences"].get<std::vector<std::vector<int32_t>>>()),
        tokens_(DType::int32, {plan.worker_sequences(), plan.sequence_length}),
        targets_(DType::int32, {plan.worker_sequences(), plan.sequence_length}) {}

  Batch batch(int64_t step) override {
    const int64_t place = plan_.rank * plan_.worker_sequences();
    for (int64_t b = 0; b < plan_.worker_sequences(); b++) {
      const int64_t row = step * plan_.batch_size + place + b;
      const auto& tokens = rows_[static_cast<size_t>(row) % rows_.size()];
      const int64_t length = plan_.sequence_length;
      std::copy_n(tokens.begin(), length, tokens_.tensor().as<int32_t>() + b * length);
      std::copy_n(tokens.begin() + 1, length, targets_.tensor().as<int32_t>() + b * length);
    }
    return {tokens_.tensor(), targets_.tensor(), nullptr, static_cast<uint32_t>(place)};
  }

 private:
  std::vector<std::vector<int32_t>> rows_;
  Buffer tokens_, targets_;
};

struct GoldenOptions {
  int virtual_workers = 0;  // 0: as many as workers
  bool replicated = false;
  DType gradient_dtype = DType::fp32;
};

// Everything that a step needs, for one worker.
struct GoldenRun {
  GoldenRun(const Golden& golden, OptimizerKind kind, DType precision, int64_t micro_batch_size,
            LossScaler loss_scaler, Communicator& communicator, int64_t batch_size = 0,
            const GoldenOptions& options = {})
      : hyper(golden.index["training"]["hyperparameters"]),
        batches(golden,
                {batch_size > 0 ? batch_size : hyper["batch_size"].get<int64_t>(), micro_batch_size,
                 golden.model.context_length, communicator.rank(), communicator.size(),
                 options.virtual_workers > 0 ? options.virtual_workers : communicator.size()}),
        schedule({Schedule::cosine, hyper["learning_rate"], hyper["warmup_steps"],
                  hyper["min_lr_ratio"]},
                 hyper["steps"]),
        sharding(ParameterTable(golden.model).size(),
                 {.virtual_workers = batches.plan().virtual_workers,
                  .rank = communicator.rank(),
                  .workers = communicator.size(),
                  .replicated = options.replicated,
                  .bucket_bytes = 16384}),
        model(golden.model, {.precision = precision,
                             .micro_batch_size = micro_batch_size,
                             .padded_size = sharding.padded_size()}),
        reducer(communicator, model.stream(), model.padded_gradients(), sharding,
                model.table().group_ranges(), options.gradient_dtype),
        optimizer(model.table(),
                  {kind, hyper["beta1"], hyper["beta2"], hyper["epsilon"], hyper["weight_decay"]},
                  model.weights(), sharding.updated()),
        scaler(loss_scaler),
        step(model, batches, sharding, reducer, optimizer, scaler, schedule, communicator,
             stop_requested, {.clip_norm = hyper["clip_norm"]}) {
    std::vector<float> weights(static_cast<size_t>(model.table().size()));
    golden.read_weights(Tensor(weights.data(), DType::fp32, {model.table().size()}));
    for (const AdamW::Piece& piece : optimizer.pieces()) {
      std::copy_n(weights.data() + piece.range.begin, piece.range.size(), piece.master.as<float>());
    }
    publish_weights(communicator);
  }

  void publish_weights(Communicator& communicator) {
    optimizer.publish_weights(model.stream());
    gather_shards(sharding, model.padded_weights(), communicator, model.stream());
  }

  // The one element of the master weights, where this worker has it.
  float* master(int64_t place) const {
    for (const AdamW::Piece& piece : optimizer.pieces()) {
      if (piece.range.begin <= place && place < piece.range.end)
        return piece.master.as<float>() + (place - piece.range.begin);
    }
    return nullptr;
  }

  // Those that compute, widened: all of them on every worker.
  std::vector<float> weights() const {
    Buffer wide(DType::fp32, {model.table().size()});
    Stream stream;
    kernels::cast(wide.tensor(), model.weights(), stream);
    const float* w = wide.tensor().as<float>();
    return {w, w + wide.tensor().size()};
  }

  nlohmann::json hyper;
  GoldenBatches batches;
  LrSchedule schedule;
  Sharding sharding;
  Transformer model;
  GradientReducer reducer;
  AdamW optimizer;
  LossScaler scaler;
  std::atomic<bool> stop_requested{false};
  TrainStep step;
  TrainerState state;
};

}  // namespace lockstep
