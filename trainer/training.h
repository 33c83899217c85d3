#pragma once
#include <atomic>
#include <memory>
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
  // Of batches from anywhere, and with weights of zero: for a Rehearsal.
  Training(const TrainConfig& config, Communicator& communicator,
           std::unique_ptr<BatchSource> batches, const std::atomic<bool>& stop_requested);

  StepResult step() {
    if (!ahead_) start_step();
    ahead_ = false;
    return step_.finish(state_);
  }
  // Begins the next step(), on which a GPU works until then. Meanwhile model() and shard() are not
  // to be used.
  void start_step() {
    step_.start(state_);
    ahead_ = true;
  }

  const TrainerState& state() const { return state_; }
  Transformer& model() { return model_; }
  const BatchPlan& plan() const { return batches_->plan(); }

  // Bytes of the memory of the device that computes.
  struct Memory {
    Transformer::Memory model;
    int64_t optimizer = 0;  // moments, and master weights where they are not the model's
    int64_t reduction = 0;  // gradients that wait or travel
    int64_t inputs = 0;     // batches, one ahead
    int64_t total() const { return model.total() + optimizer + reduction + inputs; }
  };
  Memory memory() const;

  // The shard of weights and moments that this worker writes, also where it updates everything;
  // as the steps so far have left it.
  std::vector<CheckpointSlice> shard();

 private:
  void load(const Start& start);

  const TrainConfig& config_;
  Communicator& communicator_;
  Sharding sharding_;
  std::unique_ptr<BatchSource> batches_;
  LrSchedule schedule_;
  LossScaler scaler_;
  Transformer model_;
  AdamW optimizer_;
  Communicator::Registration weights_registered_;
  // Ends after the reducer, which gives up on peers that do not come, and before the memory that
  // the enqueued work uses.
  struct Drain {
    Stream& stream;
    ~Drain();
  } drain_{model_.stream()};
  GradientReducer reducer_;
  TrainerState state_;
  TrainStep step_;
  bool ahead_ = false;
};

// How config's global batch is dealt to the workers.
BatchPlan batch_plan(const TrainConfig& config, const Communicator& communicator);
// The order in which config's run goes through the training split.
Sampler sampler(const TrainConfig& config, const Dataset& dataset);
// What the model is made with; padded_size as Sharding has it.
Transformer::Options model_options(const TrainConfig& config, int64_t padded_size);

}  // namespace lockstep
