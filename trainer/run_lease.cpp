#include "trainer/run_lease.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <utility>

#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kLastTime = 253402300799;  // the end of the year 9999

// Process numbers mean something to those alone who share a kernel and a namespace of them. Empty:
// it cannot be told.
std::string machine_name() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  std::error_code error;
  const std::string names = fs::read_symlink("/proc/self/ns/pid", error).string();
  return boot.empty() || names.empty() ? "" : boot + " " + names;
}

struct Process {
  char state = 0;
  int64_t start = 0;  // clock ticks
};

// proc(5): "pid (name) state ...", the start is the 22nd field. The name may hold anything.
std::optional<Process> process(int64_t pid) {
  std::string line;
  std::getline(std::ifstream(fmt::format("/proc/{}/stat", pid)), line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(name_end + 1));
  Process found;
  fields >> found.state;
  std::string skipped;
  for (int field = 4; field < 22; field++) fields >> skipped;
  fields >> found.start;
  return found;
}

// Of a file that another may be writing or removing: empty then.
std::string content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// False where it is there already. Of all means, network file systems have this one too.
bool create_exclusively(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor >= 0) return ::close(descriptor) == 0;
  if (errno == EEXIST) return false;
  throw DataError("cannot write {}: {}; it keeps other programs out", path.string(),
                  std::strerror(errno));
}

Holder holder_in(const std::string& content) {
  return holder_from_json(json::parse(content, nullptr, false));
}

}  // namespace

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

Holder this_process(const std::string& job) {
  std::random_device random;
  const int64_t pid = ::getpid();
  return {.token = fmt::format("{:08x}{:08x}", random(), random()),
          .host = host_name(),
          .machine = machine_name(),
          .pid = pid,
          .process_start = process(pid).value_or(Process()).start,
          .job = job,
          .since = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())};
}

json to_json(const Holder& h) {
  return {{"token", h.token},
          {"host", h.host},
          {"machine", h.machine},
          {"pid", h.pid},
          {"process_start", h.process_start},
          {"job", h.job.empty() ? json() : json(h.job)},
          {"started", h.since}};
}

Holder holder_from_json(const json& object) {
  Holder h;
  if (!object.is_object()) return h;
  const auto text = [&](const char* key, std::string& field) {
    if (const auto at = object.find(key); at != object.end() && at->is_string()) field = *at;
  };
  // What no program writes is as if it were not there.
  const auto number = [&](const char* key, int64_t& field, int64_t most) {
    const auto at = object.find(key);
    if (at == object.end() || !at->is_number_integer()) return;
    if (const auto value = at->get<int64_t>(); value >= 0 && value <= most) field = value;
  };
  text("token", h.token), text("host", h.host), text("machine", h.machine), text("job", h.job);
  number("pid", h.pid, std::numeric_limits<pid_t>::max());
  number("process_start", h.process_start, std::numeric_limits<int64_t>::max());
  number("started", h.since, kLastTime);
  return h;
}

std::string describe(const Holder& h) {
  if (h.pid == 0) return "a process that has not said which it is";
  return fmt::format("process {} on {}{}, since {:%Y-%m-%d %H:%M}", h.pid, h.host,
                     h.job.empty() ? "" : ", job " + h.job,
                     fmt::localtime(static_cast<std::time_t>(h.since)));
}

std::optional<bool> is_alive(const Holder& holder) {
  const std::string here = machine_name();
  if (holder.pid <= 0 || here.empty() || holder.machine != here) return std::nullopt;
  const auto found = process(holder.pid);
  if (!found) {  // /proc may hide other users' processes
    const bool there = ::kill(static_cast<pid_t>(holder.pid), 0) == 0 || errno == EPERM;
    return there ? std::nullopt : std::optional(false);
  }
  return found->start == holder.process_start && found->state != 'Z' && found->state != 'X';
}

Leased lease_of_run(const fs::path& run) {
  return {run / "lease.json", "training in", run, "--run"};
}

RunLease::RunLease(Holder self, std::chrono::milliseconds beat, std::chrono::milliseconds stale)
    : self_(std::move(self)), beat_(beat), stale_(stale) {}

RunLease::~RunLease() {
  if (!thread_.joinable()) return;  // it was never held
  {
    std::lock_guard lock(mutex_);
    end_ = true;
  }
  ending_.notify_all();
  thread_.join();
  try {
    if (ours()) ::unlink(leased_.file.c_str());
  } catch (const std::exception& error) {
    spdlog::warn("{} is left behind: {}", leased_.file.string(), error.what());
  }
}

bool RunLease::try_take(const Leased& leased, std::function<void()> on_beat) {
  if (thread_.joinable()) return true;
  leased_ = leased;
  if (!create() && !replace_dead_one()) return false;
  thread_ = std::thread([this, on_beat = std::move(on_beat)] { beat_on(on_beat); });
  return true;
}

bool RunLease::create() {
  if (!create_exclusively(leased_.file)) return false;
  try {
    write_file_atomically(leased_.file, text());
  } catch (...) {  // such as a full disk: the next start need not wait for this one
    ::unlink(leased_.file.c_str());
    throw;
  }
  return true;
}

bool RunLease::replace_dead_one() {
  const std::string content = content_of(leased_.file);
  const Holder other = holder_in(content);
  const std::optional<bool> alive = is_alive(other);
  if (alive == true || (watched_ && content != *watched_)) {
    throw UsageError("another program is {} {} right now: {}; stop it, or choose another {}",
                     leased_.doing, leased_.what.string(), describe(other), leased_.option);
  }
  const auto now = std::chrono::steady_clock::now();
  if (!alive && !watched_) {
    watched_ = content;
    watched_since_ = now;
  }
  if (!alive && now - watched_since_ < stale_) return false;

  // Of several who come here at once, one replaces this very lease: who has made the claim.
  const fs::path claim =
      fmt::format("{}.after-{:016x}", leased_.file.string(), std::hash<std::string>()(content));
  if (!create_exclusively(claim)) {
    if (!claimed_since_) claimed_since_ = now;
    if (now - *claimed_since_ >= stale_) ::unlink(claim.c_str());  // who made it died there
    return false;
  }
  const bool unchanged = content_of(leased_.file) == content;
  if (unchanged) write_file_atomically(leased_.file, text());
  ::unlink(claim.c_str());
  if (unchanged) taken_over_from_ = describe(other);
  return unchanged;
}

std::string RunLease::text() const {
  json object = to_json(self_);
  object["beat"] = beats_;
  return object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

// Throws DataError where it cannot be read, as on a network disk now and then: that says nothing.
bool RunLease::ours() const {
  std::error_code error;
  if (!fs::exists(leased_.file, error) && !error) return false;
  return holder_in(read_file(leased_.file)).token == self_.token;
}

void RunLease::beat_on(const std::function<void()>& on_beat) {
  std::unique_lock lock(mutex_);
  bool warned = false;
  while (!ending_.wait_for(lock, beat_, [&] { return end_; })) {
    lock.unlock();
    beats_++;
    try {
      lost_ = lost_ || !ours();
      // Not flushed: a beat that waits for the disk would come too late, and others would think
      // that this program is gone.
      if (!lost_) write_file_atomically(leased_.file, text(), Flush::no);
      on_beat();
    } catch (const std::exception& error) {  // such as a full disk: the next save will tell
      if (!std::exchange(warned, true))
        spdlog::warn("no sign of life of this program: {}", error.what());
    }
    lock.lock();
  }
}

void RunLease::check() const {
  if (!lost_) return;
  std::error_code error;
  if (!fs::exists(leased_.file, error)) {
    throw UsageError(
        "{}, or its folder, was removed while this program was {} {}: it ends, for another may "
        "begin there; run it again",
        leased_.file.string(), leased_.doing, leased_.what.string());
  }
  throw UsageError(
      "another program has taken over {}: {}; this one was not heard of for too long, or {} was "
      "removed",
      leased_.what.string(), describe(holder_in(content_of(leased_.file))), leased_.file.string());
}

}  // namespace lockstep
