#include "trainer/slow_workers.h"

#include <algorithm>

#include "core/check.h"

namespace lockstep {
namespace {

// The lower of the two in the middle of an even number.
double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

bool SlowWorkers::add(std::span<const double> seconds) {
  CHECK(seconds.size() == seconds_.size(), "{} workers of {}", seconds.size(), seconds_.size());
  for (size_t rank = 0; rank < seconds.size(); rank++) seconds_[rank].push_back(seconds[rank]);
  if (seconds_.size() < 2) return false;
  window_s_ += *std::max_element(seconds.begin(), seconds.end());
  if (seconds_[0].size() < kWindow || window_s_ < kWindow_s) return false;

  window_s_ = 0;
  std::vector<double> medians;
  for (std::vector<double>& of_worker : seconds_) {
    medians.push_back(median(of_worker));
    of_worker.clear();
  }
  std::vector<Slow> slow;
  for (size_t rank = 0; rank < medians.size(); rank++) {
    std::vector<double> others = medians;
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(rank));
    const double usual = median(others);
    const bool was_slow = std::any_of(slow_.begin(), slow_.end(), [&](const Slow& s) {
      return s.rank == static_cast<int>(rank);
    });
    const double more = std::max(kShare * usual, kLeast_s) * (was_slow ? 0.5 : 1);
    if (medians[rank] > usual + more) {
      slow.push_back({static_cast<int>(rank), medians[rank], usual});
    }
  }
  const bool changed = !std::equal(slow.begin(), slow.end(), slow_.begin(), slow_.end(),
                                   [](const Slow& a, const Slow& b) { return a.rank == b.rank; });
  slow_ = std::move(slow);
  return changed;
}

}  // namespace lockstep
