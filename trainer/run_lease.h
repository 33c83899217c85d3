#pragma once
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <thread>

namespace lockstep {

// A process that holds a lease, as others must know it.
struct Holder {
  std::string token;    // of this start alone, random
  std::string host;     // for people
  std::string machine;  // one running kernel, and who sees its process numbers
  int64_t pid = 0;
  int64_t process_start = 0;  // of the pid, since the kernel's start: a pid is given again
  std::string job;            // of the batch system; empty: none
  int64_t since = 0;          // unix seconds
};

std::string host_name();  // of this one
Holder this_process(const std::string& job);
nlohmann::json to_json(const Holder& holder);
Holder holder_from_json(const nlohmann::json& json);  // fields that are not there stay empty
std::string describe(const Holder& holder);           // "process 17 on node3, job 4, since 12:03"

// Whether the process is there; none: this machine cannot tell of another.
std::optional<bool> is_alive(const Holder& holder);

// What one program at a time may do.
struct Leased {
  std::filesystem::path file;  // of the lease; its folder must be there
  std::string doing;           // "training in", with `what` behind it
  std::filesystem::path what;
  std::string option;  // that chooses another
};

Leased lease_of_run(const std::filesystem::path& run);  // RUN/lease.json

// Keeps a second program from doing the same (training in a run folder, writing a file), on this
// host or on another that shares the file system, whose locks (flock, fcntl) need not reach from
// host to host: the lease's file is created exclusively, names its holder, and is rewritten every
// kBeat with another number. It is given up on destruction. A lease whose holder died is taken
// over: at once where that can be seen, and where the holder is another machine's when kStale has
// passed without a beat, by the clock of the one who waits.
class RunLease {
 public:
  static constexpr std::chrono::seconds kBeat{5}, kStale{60};

  explicit RunLease(Holder self, std::chrono::milliseconds beat = kBeat,
                    std::chrono::milliseconds stale = kStale);
  ~RunLease();
  RunLease(const RunLease&) = delete;
  RunLease& operator=(const RunLease&) = delete;

  // True when the lease is held, by this call or an earlier one; false while it cannot be told
  // whether another's is alive: to be called again, until it can. Throws UsageError when another
  // program holds it. `on_beat` is called at every beat, by the thread of the lease.
  bool try_take(const Leased& leased, std::function<void()> on_beat);

  // Throws UsageError once another program has taken the lease over, as it does when no beat came
  // through for so long that this one seemed dead.
  void check() const;
  bool lost() const { return lost_; }

  bool held() const { return thread_.joinable(); }
  const Holder& self() const { return self_; }
  // Whose lease was taken over; empty: nobody's.
  const std::string& taken_over_from() const { return taken_over_from_; }

 private:
  bool create();
  bool replace_dead_one();
  std::string text() const;
  void beat_on(const std::function<void()>& on_beat);
  bool ours() const;

  const Holder self_;
  const std::chrono::milliseconds beat_, stale_;
  Leased leased_;
  std::string taken_over_from_;

  std::optional<std::string> watched_;  // another machine's lease, as it was first seen
  std::chrono::steady_clock::time_point watched_since_;
  std::optional<std::chrono::steady_clock::time_point> claimed_since_;  // of taking over

  int64_t beats_ = 0;
  std::atomic<bool> lost_{false};
  std::mutex mutex_;
  std::condition_variable ending_;
  bool end_ = false;
  std::thread thread_;
};

}  // namespace lockstep
