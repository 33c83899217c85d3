#pragma once
#include <filesystem>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "trainer/run_lease.h"

namespace lockstep {

// What RUN/status.json says: how a run is doing, for whoever asks from elsewhere.
struct RunStatus {
  enum class State {
    running,
    finished,  // it has all its steps
    stopped,   // on request, or because its time was over, after saving: run it again
    failed,    // `reason` says why
    lost       // told by a reader: it says running, but nothing is heard of it
  };
  struct Saved {
    int64_t step = 0, time = 0;  // unix seconds
  };

  State state = State::running;
  std::string reason;  // one line or two; empty: none
  int64_t step = 0, steps = 0;
  std::optional<double> loss, validation_loss;  // nats a token; null in the file when not finite
  std::optional<double> tokens_per_second, seconds_left;
  std::optional<Saved> last_checkpoint;
  std::vector<std::string> hosts;         // of the workers, by rank
  std::vector<int> slow_workers;          // ranks
  std::vector<std::string> warnings;      // that hold now
  std::optional<double> time_limit_left;  // seconds
  Holder holder;                          // the first worker
  int64_t heartbeat = 0;                  // unix seconds of its clock
  std::string version;                    // of the program
};

int64_t unix_now();  // seconds

std::string_view name(RunStatus::State state);
nlohmann::ordered_json to_json(const RunStatus& status);
// Throws DataError where a status file does not hold that.
RunStatus run_status_from_json(const nlohmann::json& json);

// What the run's status file says; none: there is no file. Throws DataError where it is damaged.
std::optional<RunStatus> read_status(const std::filesystem::path& run);

// Where it lies. A reader finds it whole at any time (write_file_atomically).
std::filesystem::path status_file(const std::filesystem::path& run);

// The first worker's status, which is written at every write(): by the heartbeat of the run's lease
// and at what a reader should see at once. From any thread.
class StatusFile {
 public:
  StatusFile(const RunLease& lease, std::string version);

  // From now on there is a file; before, nothing is written.
  void open(const std::filesystem::path& run);
  void update(const std::function<void(RunStatus&)>& change);
  void write();  // throws DataError
  // The last one: how the run ended. Where it cannot be written, a warning says so.
  void end(RunStatus::State state, const std::string& reason) noexcept;

  void check_lease() const { lease_.check(); }

 private:
  const RunLease& lease_;
  std::mutex mutex_;  // of status_
  RunStatus status_;
  std::mutex file_mutex_;  // of writing, which may take long
  std::filesystem::path file_;
};

}  // namespace lockstep
