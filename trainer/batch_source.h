#pragma once
#include <cstdint>

#include "model/transformer.h"

namespace lockstep {

// How one step's global batch is cut: batch_size sequences = workers * accumulation *
// micro_batch_size. Worker r owns the r-th run of batch_size / workers sequences.
struct BatchPlan {
  int64_t batch_size = 0;        // sequences a step, over all workers
  int64_t micro_batch_size = 0;  // sequences a forward pass
  int64_t sequence_length = 0;   // tokens
  int rank = 0, workers = 1;

  int64_t worker_sequences() const { return batch_size / workers; }
  int64_t accumulation() const { return worker_sequences() / micro_batch_size; }
  int64_t step_tokens() const { return batch_size * sequence_length; }
};

// Throws UsageError, naming the numbers, when they do not divide.
void validate(const BatchPlan& plan);

// Where a step's micro-batches come from.
class BatchSource {
 public:
  explicit BatchSource(const BatchPlan& plan) : plan_(plan) { validate(plan); }
  virtual ~BatchSource() = default;
  const BatchPlan& plan() const { return plan_; }
  // Micro-batch k of this worker in `step` (from 0). Valid until the next call.
  virtual Batch batch(int64_t step, int64_t k) = 0;

 protected:
  BatchPlan plan_;
};

}  // namespace lockstep
