#pragma once
#include <fstream>
#include <optional>

#include "comm/communicator.h"
#include "core/profile.h"
#include "trainer/config.h"
#include "trainer/profile_report.h"

namespace lockstep {

// Profiles a few steps of a run when it asks for that (TrainConfig::profile), and writes what they
// took: all workers' spans into one file in Chrome's trace format, which Perfetto and
// chrome://tracing open. Collective throughout.
class StepProfile {
 public:
  // Steps before, in which memory is touched for the first time and libraries choose.
  static constexpr int64_t kWarmUpSteps = 2;

  // first_step: that the run starts behind. Throws SharedError when the file cannot be written or
  // the run has too few steps; one that goes on with too few left is not profiled.
  StepProfile(const TrainConfig& config, Communicator& communicator, int64_t first_step);

  // Between two steps, `done` of the run are done: whether turn() has something to do, for which
  // nothing may be under way.
  bool due(int64_t done) const;
  // Begins or ends the profile when it is time. `peak_flops`: a second, of the matrix products of
  // all workers together. Returns what end() does.
  std::string turn(int64_t done, Stream& stream, double peak_flops);
  // Ends it, early maybe, if it has begun, and writes the file. Returns the table (profile_table)
  // on the first worker; empty on others, and where nothing has ended.
  std::string end(double peak_flops);

  std::vector<std::string> notes() const;  // for the user, at the start

 private:
  void write_trace(const std::vector<Track>& tracks);

  const TrainConfig& config_;
  Communicator& communicator_;
  bool wanted_;
  const int64_t begin_, end_;  // steps done
  std::ofstream file_;         // the first worker's
  double memory_rate_ = 0;     // bytes a second, of all workers together
  std::optional<Profile> profile_;
};

}  // namespace lockstep
