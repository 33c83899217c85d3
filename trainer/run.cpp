#include "trainer/run.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "comm/agreement.h"
#include "core/profile.h"
#include "core/text.h"
#include "core/thread_pool.h"
#include "kernels/machine.h"
#include "trainer/replicas.h"

namespace lockstep {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Of the matrix products of all workers together, FLOP/s.
double measure_peak(const TrainConfig& config, Communicator& communicator) {
  communicator.set_purpose("before measuring the machine's rate");
  communicator.barrier();  // workers that share a machine measure at the same time
  double flops = kernels::measured_product_rate(config.precision, config.device);
  communicator.all_reduce(&flops, 1, ReduceOp::sum);
  return flops;
}

// For what other workers write: as for all else that they are waited for, within reason.
std::chrono::milliseconds patience(const TrainConfig& config) {
  return std::chrono::milliseconds(
      static_cast<int64_t>(1000 * std::min(config.collective_timeout_s, 300.0)));
}

}  // namespace

int64_t validation_windows(const TrainConfig& config) {
  const int64_t steps = config.evaluate_every > 0 ? config.evaluate_every : config.steps;
  return std::max<int64_t>(1, steps * config.batch_size / 4);
}

Run::Run(const TrainConfig& config, Communicator& communicator, const Dataset& dataset,
         const Start& start, std::atomic<bool>& stop_requested, StatusFile* status)
    : config_(config),
      communicator_(communicator),
      dataset_(dataset),
      stop_requested_(stop_requested),
      products_(config.run),
      product_notes_(start.resumes && config.device == Device::cuda ? products_.reuse(communicator)
                                                                    : std::vector<std::string>()),
      profile_(config, communicator, start.resumes ? start.checkpoint->info().step : 0),
      peak_flops_(measure_peak(config, communicator)),
      training_(config, communicator, dataset, start, stop_requested),
      checkpoints_(config.run, communicator.rank(), communicator.size(), config.keep,
                   patience(config)),
      progress_(communicator.rank() == 0, config.log_every),
      watch_(config, progress_, status) {
  if (dataset.has_split("validation") && dataset.split("validation").size() > 1) {
    validation_ = &dataset.split("validation");
  }
  if (start.resumes) saved_step_ = state().step;
  first_step_ = state().step;
  start_watch(start);
  open_run_folder();
  describe(start);
  note(product_notes_);
}

void Run::note(const std::vector<std::string>& texts) {
  for (const std::string& text : texts) progress_.note(text);
}

void Run::start_watch(const Start& start) {
  const std::vector<std::string> hosts = communicator_.gather(host_name());
  run_together(communicator_, [&] {
    if (!first_worker()) return;
    const int64_t bytes =
        3 * size_bytes(DType::fp32) * training_.model().table().size();  // weights and moments
    // Forward alone is a third of a step; half, to be on the safe side.
    double evaluation_steps = 0;
    if (validation_ != nullptr) {
      const int64_t windows = std::min(validation_windows(config_),
                                       validation_->size() / config_.model.context_length + 1);
      evaluation_steps =
          0.5 * static_cast<double>(windows) / static_cast<double>(config_.batch_size);
    }
    std::optional<RunStatus::Saved> saved;
    if (start.resumes) {
      const auto written = std::filesystem::last_write_time(start.checkpoint->path());
      saved = {state().step,
               std::chrono::system_clock::to_time_t(std::chrono::file_clock::to_sys(written))};
    }
    watch_.start(hosts, state().step, saved, bytes, evaluation_steps);
  });
}

void Run::open_run_folder() {
  run_together(communicator_, [&] {
    if (!first_worker()) return;
    std::error_code error;
    std::filesystem::create_directories(config_.run, error);
    if (error) {
      throw DataError("the run folder {} cannot be made: {}", config_.run.string(),
                      error.message());
    }
    metrics_.emplace(config_.run / "metrics.jsonl", state().step);
  });
}

void Run::describe(const Start& start) {
  const auto virtual_each = config_.virtual_workers / communicator_.size();
  progress_.note(fmt::format("{} model of {} parameters, {}", name(config_.model.family),
                             count_text(training_.model().table().size()),
                             name(config_.precision)));
  progress_.note(
      fmt::format("{}{}, {} each, {:.0f} MiB a worker", plural(communicator_.size(), "worker"),
                  virtual_each == 1 ? "" : fmt::format(" for {} virtual", config_.virtual_workers),
                  config_.device == Device::cuda ? "a GPU" : plural(num_threads(), "thread"),
                  static_cast<double>(training_.memory().total()) / (1 << 20)));
  progress_.note(fmt::format(
      "{} of {} of {} tokens: {:.2f} epochs of {} tokens", plural(config_.steps, "step"),
      plural(config_.batch_size, "sequence"), config_.model.context_length,
      sampler(config_, dataset_).epoch(config_.steps), count_text(dataset_.split("train").size())));
  note(start.notes);
  note(profile_.notes());
  if (start.checkpoint) {
    progress_.note(fmt::format("{} {}",
                               start.resumes ? "going on from" : "starting with weights of",
                               start.checkpoint->path().string()));
  }
  if (validation_ == nullptr) {
    progress_.note("the dataset has no validation text: there will be no evaluations");
  }
}

ExitCode Run::train() {
  if (finished()) {
    progress_.note(
        fmt::format("{} has its {} steps already: nothing to do; --steps says how many "
                    "it shall have",
                    config_.run.string(), state().step));
    return ExitCode::done;
  }
  bool stop = false;
  auto start = Clock::now();
  while (!finished() && !stop) {
    bool ahead = false;
    {
      const ProfileScope scope(Span::Kind::stage, "step", state().step + 1);
      const StepResult result = training_.step();
      const double step_seconds = seconds_since(start);
      if (result.step == first_step_ + 1) second_step_start_ = Clock::now();
      stop = result.stop && !finished();
      stop_in_time(result, step_seconds);

      // A GPU goes on while the host reports.
      start = Clock::now();
      ahead = config_.device == Device::cuda && !stop && !pause_due();
      if (ahead) training_.start_step();
      if (due(config_.check_replicas)) {
        check_replicas(training_.model(), state().step, communicator_);
      }
      report(result, step_seconds, evaluate_when_due(stop));
      give_up_when_lost(result);
      save_when_due(stop);
    }
    if (!stop) show_profile(profile_.turn(state().step, training_.model().stream(), peak_flops_));
    if (!ahead) start = Clock::now();
  }
  show_profile(profile_.end(peak_flops_));
  finish_save();
  if (stop) {
    progress_.note(fmt::format("stopped {} after step {}: run it again to go on",
                               watch_.out_of_time() ? "for the time limit" : "on request",
                               state().step));
  }
  return stop ? ExitCode::stopped : ExitCode::done;
}

// Asked for here it is agreed on in the next step, as a signal's request is.
void Run::stop_in_time(const StepResult& result, double step_seconds) {
  if (!first_worker()) return;
  const int64_t step = result.step;
  TimeLimit::Ahead ahead{.saves = saving_step_ ? 2 : 1};
  for (const int64_t next : {step, step + 1}) {
    const bool evaluates = next >= config_.steps || due(config_.evaluate_every, next);
    ahead.evaluations += evaluates && validation_ != nullptr ? 1 : 0;
    ahead.saves += due(config_.checkpoint_every, next) ? 1 : 0;
  }
  // A run that asks only after the next step has its last one by then, and evaluates.
  if (step + 2 == config_.steps && validation_ != nullptr) ahead.evaluations++;
  if (watch_.step_done(result, step_seconds, ahead)) stop_requested_ = true;
}

void Run::show_profile(const std::string& table) {
  if (table.empty()) return;
  progress_.note(fmt::format("profile: the trace is in {}", config_.profile.string()));
  fmt::print("{}", table);
  std::fflush(stdout);
}

bool Run::pause_due() const {
  return finished() || due(config_.check_replicas) || due(config_.evaluate_every) ||
         due(config_.checkpoint_every) || profile_.due(state().step) ||
         state().lost_steps >= kLostStepsAllowed;
}

std::optional<Evaluation> Run::evaluate_when_due(bool stop) {
  const bool wanted = finished() || due(config_.evaluate_every);
  if (!wanted || stop || validation_ == nullptr) return std::nullopt;
  const ProfileScope scope(Span::Kind::stage, "evaluation");
  const auto start = Clock::now();
  const Evaluation evaluation =
      evaluate(training_.model(), *validation_, communicator_, validation_windows(config_));
  if (first_worker()) watch_.evaluated(evaluation, seconds_since(start));
  return evaluation;
}

void Run::report(const StepResult& result, double step_seconds,
                 const std::optional<Evaluation>& evaluation) {
  if (!first_worker()) return;
  const ProfileScope scope(Span::Kind::stage, "report");
  const int64_t step_tokens = training_.plan().step_tokens();
  metrics_->write(result, state().tokens, step_tokens, step_seconds, evaluation);

  const double rate = static_cast<double>(step_tokens) / step_seconds;
  tokens_per_second_ = tokens_per_second_ > 0 ? 0.9 * tokens_per_second_ + 0.1 * rate : rate;
  ProgressStatus status{.step = result.step,
                        .steps = config_.steps,
                        .loss = result.loss,
                        .learning_rate = result.learning_rate,
                        .grad_norm = result.grad_norm,
                        .tokens_per_second = tokens_per_second_,
                        .skipped = result.skipped};
  status.peak_share = tokens_per_second_ * training_flops_per_token(config_.model) / peak_flops_;
  // By all that has passed since the first step, which also warms up.
  if (const int64_t timed = result.step - first_step_ - 1; timed > 0) {
    status.seconds_left = seconds_since(second_step_start_) / static_cast<double>(timed) *
                          static_cast<double>(config_.steps - result.step);
  }
  progress_.show(status);
  watch_.reported(status);
  if (evaluation) {
    // std::abs: nan has a sign.
    progress_.note(fmt::format("step {}: validation loss {:.4f}, {:.4f} bits a byte", result.step,
                               std::abs(evaluation->loss), std::abs(evaluation->bits_per_byte)));
  }
}

void Run::give_up_when_lost(const StepResult& result) {
  if (state().lost_steps < kLostStepsAllowed) return;
  finish_save();
  const std::string last = saved_step_
                               ? fmt::format("the checkpoint of step {} is good", *saved_step_)
                               : std::string("there is no checkpoint yet");
  throw SharedError(
      ExitCode::data,
      fmt::format("the gradients of {} steps in a row were not finite (loss {} at step {}, loss "
                  "scale {}), so nothing was learned from them; {}\n"
                  "try a lower --learning-rate, a longer --warmup-steps, --clip-norm 1 or "
                  "--precision bf16 or fp32; if it started like this, check the weights",
                  state().lost_steps, std::abs(result.loss), result.step, result.loss_scale, last));
}

void Run::save_when_due(bool stop) {
  const ProfileScope scope(Span::Kind::stage, "checkpoint");
  bool written = false;
  run_together(communicator_, [&] { written = checkpoints_.poll(); });  // throws what went wrong
  if (written) note_saved();
  if (!due(config_.checkpoint_every) && !stop && !finished()) return;

  run_together(communicator_, [&] {
    if (!first_worker()) return;
    checkpoints_.prepare(state().step);
    if (config_.device == Device::cuda) note(products_.write());
  });
  saving_step_ = state().step;
  CheckpointInfo info{.step = state().step,
                      .model = config_.model,
                      .tokenizer_json = dataset_.tokenizer_json(),
                      .trainer_state = to_json(state()),
                      .run_config = run_options(config_, dataset_)};
  checkpoints_.save(info, training_.shard());
}

void Run::finish_save() {
  run_together(communicator_, [&] { checkpoints_.wait(); });
  note_saved();
}

void Run::note_saved() {
  if (!saving_step_) return;
  saved_step_ = std::exchange(saving_step_, std::nullopt);
  if (first_worker()) watch_.saved(*saved_step_, checkpoints_.last_seconds());
  progress_.note(fmt::format("saved {}", checkpoint_folder(config_.run, *saved_step_).string()));
}

}  // namespace lockstep
