#pragma once
#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>

#include "checkpoints/checkpoint.h"
#include "inference/evaluate.h"
#include "trainer/metrics.h"
#include "trainer/product_record.h"
#include "trainer/progress.h"
#include "trainer/resume.h"
#include "trainer/run_watch.h"
#include "trainer/step_profile.h"
#include "trainer/training.h"

namespace lockstep {

// What happens around the steps of a run, on this worker: start, evaluation, checkpoints, metrics,
// progress, stopping. Collective throughout.
class Run {
 public:
  // Steps in a row whose gradients are not finite, with no lower loss scale to try, until the run
  // is given up: a bad batch is passed over, weights that have diverged are not trained on for
  // ever.
  static constexpr int64_t kLostStepsAllowed = 10;

  Run(const TrainConfig& config, Communicator& communicator, const Dataset& dataset,
      const Start& start, std::atomic<bool>& stop_requested, StatusFile* status);

  // Trains to config.steps and returns done; or, when some worker was asked to stop or the time
  // limit comes near, saves and returns stopped.
  ExitCode train();

  const TrainerState& state() const { return training_.state(); }

 private:
  using Clock = std::chrono::steady_clock;

  void open_run_folder();
  void start_watch(const Start& start);
  void describe(const Start& start);
  void note(const std::vector<std::string>& texts);

  std::optional<Evaluation> evaluate_when_due(bool stop);
  void report(const StepResult& result, double step_seconds,
              const std::optional<Evaluation>& evaluation);
  void stop_in_time(const StepResult& result, double step_seconds);
  void give_up_when_lost(const StepResult& result);
  void save_when_due(bool stop);
  void finish_save();
  void note_saved();

  bool first_worker() const { return communicator_.rank() == 0; }
  bool finished() const { return state().step >= config_.steps; }
  // What happens every so many steps, 0 for never, follows this one.
  bool due(int64_t every) const { return due(every, state().step); }
  static bool due(int64_t every, int64_t step) { return every > 0 && step % every == 0; }
  void show_profile(const std::string& table);  // unless it is empty
  bool pause_due() const;  // something needs the model between this step and the next

  const TrainConfig& config_;
  Communicator& communicator_;
  const Dataset& dataset_;
  std::atomic<bool>& stop_requested_;  // of this worker
  ProductRecord products_;
  const std::vector<std::string> product_notes_;  // of reusing it, before the first product of all
  StepProfile profile_;
  const double peak_flops_;  // a second, of all workers together; measured in memory now free again
  Training training_;

  const TokenStream* validation_ = nullptr;  // none: the dataset has no validation text
  CheckpointWriter checkpoints_;
  std::optional<int64_t> saving_step_, saved_step_;
  std::optional<MetricsFile> metrics_;  // the first worker's
  Progress progress_;
  RunWatch watch_;

  int64_t first_step_ = 0;
  Clock::time_point second_step_start_;
  double tokens_per_second_ = 0;  // smoothed
};

// How many windows of the validation split an evaluation during training takes: a quarter of the
// sequences trained on between two, so that evaluations cost less than a tenth of the time.
int64_t validation_windows(const TrainConfig& config);

}  // namespace lockstep
