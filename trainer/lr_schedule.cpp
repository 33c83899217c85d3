#include "trainer/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"

namespace lockstep {

LrSchedule::LrSchedule(const ScheduleConfig& config, int64_t total_updates)
    : config_(config), total_updates_(total_updates) {
  if (!(config.learning_rate > 0) || !std::isfinite(config.learning_rate)) {
    throw UsageError("--learning-rate is {}: it must be above 0", config.learning_rate);
  }
  if (!(config.min_lr_ratio >= 0 && config.min_lr_ratio <= 1)) {
    throw UsageError("--min-lr-ratio is {}: it must be from 0 to 1", config.min_lr_ratio);
  }
  if (config.warmup_steps < 0) {
    throw UsageError("--warmup-steps is {}: it must not be negative", config.warmup_steps);
  }
}

double LrSchedule::learning_rate(int64_t updates_done) const {
  return config_.learning_rate * ratio(updates_done);
}

double LrSchedule::ratio(int64_t updates_done) const {
  const auto done = static_cast<double>(updates_done);
  const auto total = static_cast<double>(total_updates_);
  const auto warmup = static_cast<double>(config_.warmup_steps);
  if (done < warmup) return (done + 1) / warmup;

  const double floor = config_.min_lr_ratio;
  const auto from_floor = [floor](double share) { return floor + (1 - floor) * share; };
  const double way = total > warmup ? std::min(1.0, (done - warmup) / (total - warmup)) : 1.0;
  switch (config_.schedule) {
    case Schedule::cosine:
      return from_floor((1 + std::cos(std::numbers::pi * way)) / 2);
    case Schedule::linear:
      return from_floor(1 - way);
    case Schedule::constant:
      return 1;
    case Schedule::inverse_sqrt:
      return std::max(floor, std::sqrt(std::max(warmup, 1.0) / (done + 1)));
    case Schedule::wsd: {
      const double decay = kDecayShare * total;
      const double behind = std::clamp((done - (total - decay)) / decay, 0.0, 1.0);
      return from_floor(1 - std::sqrt(behind));
    }
  }
  CHECK(false, "unknown schedule");
  return 0;
}

}  // namespace lockstep
