#pragma once
#include <optional>
#include <string>
#include <vector>

#include "inference/evaluate.h"
#include "trainer/config.h"
#include "trainer/progress.h"
#include "trainer/run_status.h"
#include "trainer/slow_workers.h"
#include "trainer/time_limit.h"

namespace lockstep {

// What the first worker keeps an eye on while a run goes on: the time that it has left, workers
// that hold up the others, and what RUN/status.json shall say. Nothing here changes a bit of the
// result. `status`: none where nobody is told.
class RunWatch {
 public:
  RunWatch(const TrainConfig& config, Progress& progress, StatusFile* status);

  // Before the first step. Throws UsageError when the time limit leaves no room for a save.
  void start(const std::vector<std::string>& hosts, int64_t step,
             std::optional<RunStatus::Saved> saved, int64_t checkpoint_bytes,
             double evaluation_steps);
  // After each step. True, once, when the run must be stopped because of its time limit. Throws
  // UsageError when another program has taken the run over.
  bool step_done(const StepResult& result, double seconds, const TimeLimit::Ahead& ahead);
  void reported(const ProgressStatus& progress);
  void evaluated(const Evaluation& evaluation, double seconds);
  void saved(int64_t step, double seconds);
  // Whether the run stops because of its time limit.
  bool out_of_time() const { return stopping_; }

 private:
  using Clock = TimeLimit::Clock;

  void update(const std::function<void(RunStatus&)>& change, bool now);
  void look_for_slow_workers(const StepResult& result);
  bool time_is_up(const StepResult& result, const TimeLimit::Ahead& ahead);

  const TrainConfig& config_;
  Progress& progress_;
  StatusFile* const status_;
  std::vector<std::string> hosts_;
  std::optional<TimeLimit> time_limit_;
  SlowWorkers slow_workers_{0};
  int64_t first_step_ = 0;
  bool stopping_ = false;
  bool warned_ = false;  // that the status cannot be written
};

}  // namespace lockstep
