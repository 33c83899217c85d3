#include "trainer/batch_source.h"

#include <vector>

namespace lockstep {

std::string divisors_text(int64_t n) {
  constexpr size_t kShown = 12;
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d <= n / d && divisors.size() < kShown; d++) {
    if (n % d == 0) divisors.push_back(d);
  }
  const size_t small = divisors.size();
  for (size_t i = small; i > 0 && divisors.size() < kShown; i--) {
    const int64_t large = n / divisors[i - 1];
    if (large != divisors[i - 1]) divisors.push_back(large);
  }
  const bool all = divisors.empty() || divisors.back() == n;
  return fmt::format("{}{}", fmt::join(divisors, ", "), all ? "" : ", ...");
}

void validate(const BatchPlan& plan) {
  if (plan.batch_size < 1 || plan.micro_batch_size < 1) {
    throw UsageError("--batch-size is {} and --micro-batch-size {}: both must be at least 1",
                     plan.batch_size, plan.micro_batch_size);
  }
  if (plan.virtual_workers < 1 || plan.virtual_workers % plan.workers != 0) {
    throw UsageError("{} virtual workers cannot be dealt to {} workers: the run can go on with {}",
                     plan.virtual_workers, plan.workers, divisors_text(plan.virtual_workers));
  }
  if (plan.batch_size % (plan.virtual_workers * plan.micro_batch_size) != 0) {
    throw UsageError(
        "--batch-size {} cannot be dealt to {} virtual worker(s) in micro-batches of {}: it must "
        "be a multiple of {} x {} = {}",
        plan.batch_size, plan.virtual_workers, plan.micro_batch_size, plan.virtual_workers,
        plan.micro_batch_size, plan.virtual_workers * plan.micro_batch_size);
  }
}

}  // namespace lockstep
