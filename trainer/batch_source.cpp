#include "trainer/batch_source.h"

namespace lockstep {

void validate(const BatchPlan& plan) {
  if (plan.batch_size < 1 || plan.micro_batch_size < 1) {
    throw UsageError("--batch-size is {} and --micro-batch-size {}: both must be at least 1",
                     plan.batch_size, plan.micro_batch_size);
  }
  if (plan.batch_size % (plan.workers * plan.micro_batch_size) != 0) {
    throw UsageError(
        "--batch-size {} cannot be dealt to {} worker(s) in micro-batches of {}: it must be a "
        "multiple of {} x {} = {}",
        plan.batch_size, plan.workers, plan.micro_batch_size, plan.workers, plan.micro_batch_size,
        plan.workers * plan.micro_batch_size);
  }
}

}  // namespace lockstep
