#include "trainer/time_limit.h"

#include <algorithm>

namespace lockstep {
namespace {

constexpr size_t kStepsKept = 100;

double seconds_between(TimeLimit::Clock::time_point from, TimeLimit::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

TimeLimit::TimeLimit(Clock::time_point now, Clock::time_point end, int64_t checkpoint_bytes,
                     double evaluation_steps)
    : end_(end),
      margin_s_(
          std::clamp(kMarginShare * seconds_between(now, end), kLeastMargin_s, kMostMargin_s)),
      estimated_save_s_(static_cast<double>(checkpoint_bytes) / kSlowDisk),
      evaluation_steps_(evaluation_steps) {}

void TimeLimit::step_took(double seconds) {
  steps_.push_back(seconds);
  if (steps_.size() > kStepsKept) steps_.pop_front();
}

void TimeLimit::evaluation_took(double seconds) {
  evaluation_s_ = std::max(seconds, evaluation_s_.value_or(0));
}

void TimeLimit::save_took(double seconds) { save_s_ = std::max(seconds, save_s_.value_or(0)); }

double TimeLimit::longest_step() const {
  return steps_.empty() ? 0 : *std::max_element(steps_.begin(), steps_.end());
}

double TimeLimit::save_seconds() const {
  return save_s_ ? kSaveVariation * *save_s_ : estimated_save_s_;
}

double TimeLimit::seconds_left(Clock::time_point now) const { return seconds_between(now, end_); }

bool TimeLimit::must_stop(Clock::time_point now, const Ahead& ahead) const {
  const double evaluation = evaluation_s_.value_or(evaluation_steps_ * longest_step());
  const double needed = 2 * longest_step() + ahead.evaluations * evaluation +
                        ahead.saves * save_seconds() + margin_s_;
  return needed > seconds_left(now);
}

bool TimeLimit::too_short_to_save(Clock::time_point now) const {
  return save_seconds() + margin_s_ > seconds_left(now);
}

}  // namespace lockstep
