#include "trainer/run_watch.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"

namespace lockstep {
namespace {

std::string slow_text(const SlowWorkers::Slow& slow, const std::string& host) {
  return fmt::format("worker {} on {} is slow: it computes {:.3g} s a step, the others {:.3g} s",
                     slow.rank, host, slow.seconds, slow.others_seconds);
}

}  // namespace

RunWatch::RunWatch(const TrainConfig& config, Progress& progress, StatusFile* status)
    : config_(config), progress_(progress), status_(status) {}

void RunWatch::update(const std::function<void(RunStatus&)>& change, bool now) {
  if (status_ == nullptr) return;
  status_->update(change);
  if (!now) return;
  try {
    status_->write();
  } catch (const DataError& error) {  // no reason to end a run
    if (!std::exchange(warned_, true))
      progress_.note(fmt::format("warning: the run's state is not noted: {}", error.what()));
  }
}

void RunWatch::start(const std::vector<std::string>& hosts, int64_t step,
                     std::optional<RunStatus::Saved> saved, int64_t checkpoint_bytes,
                     double evaluation_steps) {
  hosts_ = hosts;
  slow_workers_ = SlowWorkers(static_cast<int>(hosts.size()));
  first_step_ = step;
  update(
      [&](RunStatus& status) {
        status.hosts = hosts;
        status.step = step;
        status.steps = config_.steps;
        status.last_checkpoint = saved;
      },
      false);
  if (!config_.end_by) return;
  const auto now = Clock::now();
  time_limit_.emplace(now, *config_.end_by, checkpoint_bytes, evaluation_steps);
  if (time_limit_->too_short_to_save(now)) {
    throw UsageError(
        "the time limit ends in {:.0f} s, and saving this model may take {:.1f} s, with {:.0f} s "
        "to spare after it: give the run more time (--time-limit, or the batch system's)",
        std::max(time_limit_->seconds_left(now), 0.0), time_limit_->save_seconds(),
        time_limit_->margin());
  }
}

bool RunWatch::step_done(const StepResult& result, double seconds, const TimeLimit::Ahead& ahead) {
  if (status_ != nullptr) status_->check_lease();
  // The first step also warms up: workers differ in it for many reasons.
  if (result.step > first_step_ + 1) look_for_slow_workers(result);
  if (time_limit_) time_limit_->step_took(seconds);
  return time_is_up(result, ahead);
}

void RunWatch::look_for_slow_workers(const StepResult& result) {
  const std::vector<SlowWorkers::Slow> before = slow_workers_.slow();
  if (!slow_workers_.add(result.worker_seconds)) return;
  const std::vector<SlowWorkers::Slow>& slow = slow_workers_.slow();
  const auto has = [](const auto& all, int rank) {
    return std::any_of(all.begin(), all.end(), [&](const auto& s) { return s.rank == rank; });
  };
  std::vector<std::string> warnings;
  for (const SlowWorkers::Slow& s : slow) {
    warnings.push_back(slow_text(s, hosts_[static_cast<size_t>(s.rank)]));
    if (!has(before, s.rank)) progress_.note("warning: " + warnings.back());
  }
  for (const SlowWorkers::Slow& s : before) {
    if (has(slow, s.rank)) continue;
    progress_.note(
        fmt::format("worker {} on {} keeps up again", s.rank, hosts_[static_cast<size_t>(s.rank)]));
  }
  update(
      [&](RunStatus& status) {
        status.slow_workers.clear();
        for (const SlowWorkers::Slow& s : slow) status.slow_workers.push_back(s.rank);
        status.warnings = warnings;
      },
      true);
}

bool RunWatch::time_is_up(const StepResult& result, const TimeLimit::Ahead& ahead) {
  const auto now = Clock::now();
  if (!time_limit_ || stopping_ || result.stop || result.step >= config_.steps) return false;
  if (!time_limit_->must_stop(now, ahead)) return false;
  stopping_ = true;
  update([](RunStatus& status) { status.reason = "its time limit came near"; }, false);
  progress_.note(
      fmt::format("the time limit ends in {}: the run stops and saves after the next step",
                  duration_text(std::max(time_limit_->seconds_left(now), 0.0))));
  if (result.step == first_step_ + 1) {
    progress_.note(
        "warning: the time limit leaves room for two steps and a save, or less: give the run more "
        "time, or it will hardly get on");
  }
  return true;
}

void RunWatch::reported(const ProgressStatus& progress) {
  update(
      [&](RunStatus& status) {
        status.step = progress.step;
        status.loss = progress.loss;
        status.tokens_per_second = progress.tokens_per_second;
        if (progress.seconds_left > 0) status.seconds_left = progress.seconds_left;
        if (time_limit_) status.time_limit_left = time_limit_->seconds_left(Clock::now());
      },
      progress.step == first_step_ + 1);
}

void RunWatch::evaluated(const Evaluation& evaluation, double seconds) {
  if (time_limit_) time_limit_->evaluation_took(seconds);
  update([&](RunStatus& status) { status.validation_loss = evaluation.loss; }, false);
}

void RunWatch::saved(int64_t step, double seconds) {
  if (time_limit_) time_limit_->save_took(seconds);
  update([&](RunStatus& status) { status.last_checkpoint = {step, unix_now()}; }, true);
}

}  // namespace lockstep
