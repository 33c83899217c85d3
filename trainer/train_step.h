#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "comm/gradient_reducer.h"
#include "comm/sharding.h"
#include "model/transformer.h"
#include "trainer/adamw.h"
#include "trainer/batch_source.h"
#include "trainer/clip_policy.h"
#include "trainer/loss_scaler.h"
#include "trainer/lr_schedule.h"
#include "trainer/trainer_state.h"

namespace lockstep {

struct StepResult {
  int64_t step = 0;          // from 1
  double loss = 0;           // mean over the step's tokens, nats; before the update
  double grad_norm = 0;      // global L2 norm, unscaled, before clipping
  double learning_rate = 0;  // of the update; of the next one where this was skipped
  double loss_scale = 1;     // that the step was computed with
  bool skipped = false;      // gradients were not finite: nothing was updated
  bool stop = false;         // some worker was asked to stop
};

// One optimizer step over the global batch. The parts must outlive it.
class TrainStep {
 public:
  TrainStep(Transformer& model, BatchSource& batches, const Sharding& sharding,
            GradientReducer& reducer, AdamW& optimizer, LossScaler& scaler,
            const LrSchedule& schedule, const ClipPolicy& clip, Communicator& communicator,
            const std::atomic<bool>& stop_requested)
      : model_(model),
        batches_(batches),
        sharding_(sharding),
        reducer_(reducer),
        optimizer_(optimizer),
        scaler_(scaler),
        schedule_(schedule),
        clip_(clip),
        communicator_(communicator),
        stop_requested_(stop_requested) {}

  // The step after `state`, which it advances. Collective: every worker has the same state.
  StepResult run(TrainerState& state);

 private:
  struct Agreement {
    double loss_sum, sum_of_squares;
    bool finite, stop;
  };
  // loss_sums: of this worker's virtual workers.
  Agreement agree(const std::vector<double>& loss_sums);

  Transformer& model_;
  BatchSource& batches_;
  const Sharding& sharding_;
  GradientReducer& reducer_;
  AdamW& optimizer_;
  LossScaler& scaler_;
  const LrSchedule& schedule_;
  ClipPolicy clip_;
  Communicator& communicator_;
  const std::atomic<bool>& stop_requested_;
};

}  // namespace lockstep
