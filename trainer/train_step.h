#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "comm/gradient_reducer.h"
#include "comm/sharding.h"
#include "core/mirrored.h"
#include "kernels/clip.h"
#include "model/transformer.h"
#include "trainer/adamw.h"
#include "trainer/batch_source.h"
#include "trainer/batch_staging.h"
#include "trainer/loss_scaler.h"
#include "trainer/lr_schedule.h"
#include "trainer/trainer_state.h"

namespace lockstep {

struct StepResult {
  int64_t step = 0;                         // from 1
  double loss = 0;                          // mean over the step's tokens, nats; before the update
  double grad_norm = 0;                     // global L2 norm, unscaled, before clipping
  double learning_rate = 0;                 // of the update; of the next one where this was skipped
  double loss_scale = 1;                    // that the step was computed with
  bool skipped = false;                     // gradients were not finite: nothing was updated
  bool stop = false;                        // some worker was asked to stop
  std::vector<double> worker_seconds = {};  // forward and backward of each, waiting aside
};

// One optimizer step over the global batch. The parts must outlive it.
//
// All that a step decides is decided where it computes (kernels/clip.h), so that the host enqueues
// a step whole and waits once, for its end. On a GPU the second step is captured as a Graph, which
// is what later steps launch; the first one makes workspaces grow and libraries choose.
class TrainStep {
 public:
  struct Options {
    double clip_norm = 0;  // global L2 norm that gradients are clipped to; 0: none
    bool graph = false;    // capture steps; on a GPU
  };
  TrainStep(Transformer& model, BatchSource& batches, const Sharding& sharding,
            GradientReducer& reducer, AdamW& optimizer, LossScaler& scaler,
            const LrSchedule& schedule, Communicator& communicator,
            const std::atomic<bool>& stop_requested, const Options& options);
  // Of a step on a GPU that was started and not finished: gives up on its peers, and waits for what
  // is left of it.
  ~TrainStep();

  // The step after `state`, which it advances. Collective: every worker has the same state.
  StepResult run(TrainerState& state) {
    start(state);
    return finish(state);
  }
  // The two halves of run(): a GPU works on the step while the host does other things in between,
  // but for changing model, optimizer or state.
  void start(const TrainerState& state);
  StepResult finish(TrainerState& state);

  int64_t device_bytes() const;  // of a GPU's memory: batches, and the numbers of the decision

 private:
  // What the device must be told of a step.
  struct Inputs {
    uint64_t step = 0;
    double stop = 0;           // 1: this worker was asked to stop
    kernels::ClipInputs clip;  // with the loss scale
    kernels::AdamStep adam;    // which the decision completes
    float gradient_scale = 1;  // makes sums of losses means, and scales them
  };
  void stage(int64_t step);
  void enqueue();

  Transformer& model_;
  BatchSource& batches_;
  const Sharding& sharding_;
  GradientReducer& reducer_;
  AdamW& optimizer_;
  LossScaler& scaler_;
  const LrSchedule& schedule_;
  Communicator& communicator_;
  const std::atomic<bool>& stop_requested_;
  const Options options_;

  BatchStaging staging_;
  int64_t staged_step_ = -1;
  Batch batch_;  // this worker's of the step
  Mirrored<Inputs> inputs_;
  Mirrored<kernels::StepDecision> decision_;
  const kernels::StepNumbers places_;
  Buffer numbers_;                 // (workers, places_.size()) float64
  Buffer seconds_, host_seconds_;  // (workers) float64; on the CPU the host's only
  Buffer slices_;                  // Range of each of this worker's slices (Sharding::slices)
  int64_t num_slices_ = 0, largest_slice_ = 0;
  bool warm_ = false, started_ = false;
  std::optional<Graph> graph_;
  int workspace_moves_ = 0;  // of the stream, when the graph was captured
};

}  // namespace lockstep
