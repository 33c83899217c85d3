#pragma once
#include <cstdint>
#include <string>

#include "model/transformer.h"

namespace lockstep {

// How one step's global batch is cut: batch_size sequences = virtual_workers * accumulation *
// micro_batch_size. Virtual worker v has the v-th run of batch_size / virtual_workers sequences,
// and worker r the r-th run of virtual_workers / workers virtual workers.
struct BatchPlan {
  int64_t batch_size = 0;        // sequences a step, over all workers
  int64_t micro_batch_size = 0;  // sequences a forward pass
  int64_t sequence_length = 0;   // tokens
  int rank = 0, workers = 1;
  int virtual_workers = 1;

  int virtual_workers_each() const { return virtual_workers / workers; }
  int64_t worker_sequences() const { return batch_size / workers; }
  int64_t accumulation() const { return batch_size / virtual_workers / micro_batch_size; }
  int64_t step_tokens() const { return batch_size * sequence_length; }
};

// Throws UsageError, naming the numbers, when they do not divide.
void validate(const BatchPlan& plan);

// What divides n, the smallest first, and ", ..." if they are many: "1, 2, 3, 4, 6, 8, 12, 24".
std::string divisors_text(int64_t n);

// Where a step's batches come from.
class BatchSource {
 public:
  explicit BatchSource(const BatchPlan& plan) : plan_(plan) { validate(plan); }
  virtual ~BatchSource() = default;
  const BatchPlan& plan() const { return plan_; }
  // This worker's share of `step` (from 0), worker_sequences(), in the CPU's memory; without the
  // number of the step. Valid until the next call.
  virtual Batch batch(int64_t step) = 0;

 protected:
  BatchPlan plan_;
};

}  // namespace lockstep
