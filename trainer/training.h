#pragma once
#include <atomic>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "trainer/batch_loader.h"
#include "trainer/resume.h"
#include "trainer/train_step.h"

namespace lockstep {

// This worker's part of what the steps of a run work on: data, model, optimizer, state. Collective
// throughout.
class Training {
 public:
  // Starts where `start` says: with random weights, given ones, or a whole checkpoint. What it is
  // given must outlive it.
  Training(const TrainConfig& config, Communicator& communicator, const Dataset& dataset,
           const Start& start, const std::atomic<bool>& stop_requested);

  StepResult step() { return step_.run(state_); }

  const TrainerState& state() const { return state_; }
  Transformer& model() { return model_; }
  const BatchPlan& plan() const { return loader_.plan(); }
  double epochs(int64_t steps) const { return sampler_.epoch(steps); }
  int64_t memory_bytes() const;

  // The shard of weights and moments that this worker writes, also where it updates everything;
  // as the steps so far have left it.
  std::vector<CheckpointSlice> shard();

 private:
  void load(const Start& start);

  const TrainConfig& config_;
  Communicator& communicator_;
  Sharding sharding_;
  Sampler sampler_;
  BatchLoader loader_;
  LrSchedule schedule_;
  LossScaler scaler_;
  Transformer model_;
  GradientReducer reducer_;
  AdamW optimizer_;
  TrainerState state_;
  TrainStep step_;
};

// How config's global batch is dealt to the workers.
BatchPlan batch_plan(const TrainConfig& config, const Communicator& communicator);

}  // namespace lockstep
