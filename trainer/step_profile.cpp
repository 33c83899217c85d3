#include "trainer/step_profile.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "comm/agreement.h"
#include "core/text.h"
#include "kernels/machine.h"
#include "trainer/run_lease.h"

namespace lockstep {

StepProfile::StepProfile(const TrainConfig& config, Communicator& communicator, int64_t first_step)
    : config_(config),
      communicator_(communicator),
      wanted_(!config.profile.empty()),
      begin_(first_step + kWarmUpSteps),
      end_(begin_ + config.profile_steps) {
  if (wanted_ && first_step > 0 && end_ > config.steps) wanted_ = false;
  if (!wanted_) return;
  if (end_ > config.steps) {
    throw SharedError(
        ExitCode::usage,
        fmt::format("--profile: {} of the run's {} are left, {} are needed ({} to "
                    "warm up, {} to profile); raise --steps",
                    std::max<int64_t>(0, config.steps - first_step), plural(config.steps, "step"),
                    end_ - first_step, kWarmUpSteps, config.profile_steps));
  }
  run_together(communicator_, [&] {
    if (communicator_.rank() != 0) return;
    file_.open(config_.profile);
    if (!file_) {
      throw UsageError(
          "--profile {}: it cannot be written; choose a file in a folder that is "
          "there and writable",
          config_.profile.string());
    }
  });
  communicator_.set_purpose("before measuring the machine's memory");
  communicator_.barrier();  // workers that share a machine measure at the same time
  memory_rate_ = kernels::measured_memory_rate(config.device);
  communicator_.all_reduce(&memory_rate_, 1, ReduceOp::sum);
}

bool StepProfile::due(int64_t done) const { return wanted_ && (done == begin_ || done == end_); }

std::string StepProfile::turn(int64_t done, Stream& stream, double peak_flops) {
  if (!due(done)) return "";
  if (done == end_) return end(peak_flops);
  stream.synchronize();
  communicator_.set_purpose("before profiling");
  // The clocks' common zero: workers leave the last one, to which they come together, soon after
  // each other.
  for (int i = 0; i < 3; i++) communicator_.barrier();
  profile_.emplace(stream);
  return "";
}

std::string StepProfile::end(double peak_flops) {
  if (!profile_) {
    if (!file_.is_open()) return "";
    file_.close();  // the run ended before anything was recorded
    std::error_code error;
    if (std::filesystem::is_regular_file(config_.profile, error))
      std::filesystem::remove(config_.profile, error);
    return "";
  }
  const std::vector<Track> tracks = profile_->finish();
  profile_.reset();
  communicator_.set_purpose("of profiles");
  const auto texts = communicator_.gather(to_json(profile_totals(tracks)).dump());
  run_together(communicator_, [&] { write_trace(tracks); });
  if (communicator_.rank() != 0) return "";
  ProfileTotals totals = profile_totals_from_json(nlohmann::json::parse(texts.front()));
  for (size_t i = 1; i < texts.size(); i++) {
    totals.add(profile_totals_from_json(nlohmann::json::parse(texts[i])));
  }
  const double workers = communicator_.size();
  return profile_table(totals, {peak_flops / workers, memory_rate_ / workers});
}

std::vector<std::string> StepProfile::notes() const {
  if (config_.profile.empty()) return {};
  if (!wanted_) return {"--profile: too few steps are left, there will be no profile"};
  return {fmt::format("steps {} to {} are profiled{}", begin_ + 1, end_,
                      config_.device == Device::cuda && config_.cuda_graph
                          ? ", without the CUDA graph, whose kernels cannot be timed one by one"
                          : "")};
}

// One worker's events after the other's, so that none needs memory for all.
void StepProfile::write_trace(const std::vector<Track>& tracks) {
  if (communicator_.rank() == 0) file_ << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  const std::string host = host_name();
  for (int worker = 0; worker < communicator_.size(); worker++) {
    const bool own = worker == communicator_.rank();
    std::string events = own ? trace_events(tracks, worker, host) : std::string();
    communicator_.broadcast(events, worker);
    if (communicator_.rank() == 0) file_ << (worker == 0 ? "" : ",\n") << events;
  }
  if (communicator_.rank() != 0) return;
  file_ << "\n]}\n";
  file_.close();
  if (!file_) throw DataError("{} cannot be written: is the disk full?", config_.profile.string());
}

}  // namespace lockstep
