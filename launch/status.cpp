#include <fmt/chrono.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <thread>

#include "checkpoints/checkpoint.h"
#include "core/file.h"
#include "launch/command.h"
#include "launch/text.h"
#include "trainer/progress.h"
#include "trainer/run_lease.h"
#include "trainer/run_status.h"

namespace lockstep::launch {
namespace {

namespace fs = std::filesystem;
using State = RunStatus::State;
using std::chrono::seconds;

RunStatus read(const fs::path& run) {
  if (auto status = read_status(run)) return *status;
  if (!fs::exists(run)) throw DataError("{}: there is no such run folder", run.string());
  throw DataError(
      "{} has no {}: it is no run folder, or 'lockstep train' has not begun in it yet, or an older "
      "version did",
      run.string(), status_file(run).filename().string());
}

// Whether a run that says it is running is. Its process can be looked for on its own machine. On
// another there are its heartbeats: one that is old by this machine's clock may be so because the
// two clocks differ, so then the next ones are waited for.
bool alive(const fs::path& run, const RunStatus& status) {
  if (const auto told = is_alive(status.holder)) return *told;
  if (std::abs(unix_now() - status.heartbeat) < RunLease::kStale.count()) return true;
  const auto end = std::chrono::steady_clock::now() + 3 * RunLease::kBeat;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(seconds(1));
    const RunStatus later = read(run);
    if (later.heartbeat != status.heartbeat || later.state != status.state) return true;
  }
  return false;
}

RunStatus look(const fs::path& run) {
  RunStatus status = read(run);
  // The checkpoints that are there count: a killed run may have had no time to note its last.
  const std::vector<int64_t> steps = list_checkpoints(run);
  if (!steps.empty()) {
    std::error_code error;
    const auto written = fs::last_write_time(checkpoint_folder(run, steps.back()), error);
    if (!error) {
      status.last_checkpoint = {steps.back(), std::chrono::system_clock::to_time_t(
                                                  std::chrono::file_clock::to_sys(written))};
    }
  }
  if (status.state == State::running && !alive(run, status)) {
    status.state = State::lost;
    status.reason = "its process is gone, or nothing has been heard of it; run it again to go on";
    status.seconds_left.reset();
    status.time_limit_left.reset();
  }
  return status;
}

std::string age(int64_t time) {
  return duration_text(static_cast<double>(std::max<int64_t>(unix_now() - time, 0))) + " ago";
}

// "node3 (4), node4 (4)"
std::string hosts_text(const std::vector<std::string>& hosts) {
  std::vector<std::pair<std::string, int>> counted;
  for (const std::string& host : hosts) {
    if (counted.empty() || counted.back().first != host) counted.emplace_back(host, 0);
    counted.back().second++;
  }
  std::string text;
  for (const auto& [host, count] : counted) {
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", host, count);
  }
  return text;
}

std::string state_text(const RunStatus& s) {
  std::string text(name(s.state));
  if (s.state == State::stopped) {
    text += fmt::format(": {}; run it again to go on", s.reason.empty() ? "on request" : s.reason);
  } else if (!s.reason.empty() && s.state != State::running) {
    text += ": " + s.reason;
  }
  return text;
}

std::string step_text(const RunStatus& s) {
  const double share = s.steps > 0 ? 100.0 * static_cast<double>(s.step) / s.steps : 0;
  return fmt::format("{} of {} ({:.0f} %)", grouped(s.step), grouped(s.steps), share);
}

std::string text_of(const fs::path& run, const RunStatus& s) {
  std::string text = fmt::format("{}\n", run.string());
  const auto line = [&](const char* key, const std::string& value) {
    text += fmt::format("  {:<13}{}\n", key, value);
  };
  line("state", state_text(s));
  line("step", step_text(s));
  if (s.loss) {
    line("loss",
         fmt::format(
             "{:.4f}{}", *s.loss,
             s.validation_loss ? fmt::format(", of validation {:.4f}", *s.validation_loss) : ""));
  }
  if (s.state == State::running && s.tokens_per_second) {
    line("speed", grouped(static_cast<int64_t>(*s.tokens_per_second)) + " tokens/s");
  }
  if (s.seconds_left) line("time left", duration_text(*s.seconds_left));
  if (s.time_limit_left) line("time limit", "in " + duration_text(*s.time_limit_left));
  line("checkpoint", s.last_checkpoint
                         ? fmt::format("step {}, {}", grouped(s.last_checkpoint->step),
                                       age(s.last_checkpoint->time))
                         : "none yet");
  line("workers", fmt::format("{} on {}", s.hosts.size(), hosts_text(s.hosts)));
  line("program", fmt::format("{}, lockstep {}", describe(s.holder), s.version));
  if (s.state == State::running || s.state == State::lost) line("heard of", age(s.heartbeat));
  for (const std::string& warning : s.warnings) line("warning", warning);
  return text;
}

std::string line_of(const RunStatus& s) {
  std::string text = fmt::format("{}  step {}/{}", name(s.state), s.step, s.steps);
  if (s.loss) text += fmt::format("  loss {:.4f}", *s.loss);
  if (s.seconds_left) text += fmt::format("  {} left", duration_text(*s.seconds_left));
  if (!s.reason.empty() && s.state != State::running) text += "  " + s.reason;
  for (const std::string& warning : s.warnings) text += "  warning: " + warning;
  return text + "\n";
}

std::string json_of(const fs::path& run, const RunStatus& s) {
  nlohmann::ordered_json object{{"run", run.string()}};
  for (const auto& all = to_json(s); const auto& [key, value] : all.items()) object[key] = value;
  object.erase("token"), object.erase("machine"), object.erase("process_start");
  object["heartbeat_age_seconds"] = std::max<int64_t>(unix_now() - s.heartbeat, 0);
  if (s.last_checkpoint) {
    object["last_checkpoint"]["folder"] = checkpoint_folder(run, s.last_checkpoint->step).string();
    object["last_checkpoint"]["age_seconds"] =
        std::max<int64_t>(unix_now() - s.last_checkpoint->time, 0);
  }
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// Until the run ends: on a terminal drawn over, elsewhere a line when something has changed.
void follow(const fs::path& run, bool as_json) {
  const bool terminal = !as_json && isatty(STDOUT_FILENO) != 0;
  std::string shown;
  while (true) {
    const RunStatus status = look(run);
    if (terminal) {
      const auto lines = std::count(shown.begin(), shown.end(), '\n');
      if (lines > 0) fmt::print("\x1b[{}A\x1b[J", lines);
      shown = text_of(run, status);
      fmt::print("{}", shown);
    } else if (const std::string line = line_of(status); line != shown) {
      shown = line;
      fmt::print("{}", as_json ? json_of(run, status) : line);
    }
    std::fflush(stdout);
    if (status.state != State::running) return;
    std::this_thread::sleep_for(seconds(1));
  }
}

}  // namespace

ExitCode run_status(const Arguments& arguments, MpiSession* session) {
  fs::path run;
  bool as_json = false, follows = false;
  OptionTable table("lockstep status", "RUN [OPTION]...",
                    "Tells how a run is doing, from its folder alone: state (running, finished, "
                    "stopped, failed,\nlost), step, loss, speed, time left, last checkpoint, "
                    "workers and hosts, warnings.");
  table.positional("RUN", run);
  table.group("Output");
  table.add("follow", flag(follows), "go on telling until the run ends");
  table.add("json", flag(as_json), "one JSON object instead of text; with --follow, one a line");
  if (wants_help(arguments)) return show_help(table, session);
  table.parse(arguments);
  if (follows) {
    follow(run, as_json);
  } else {
    const RunStatus status = look(run);
    fmt::print("{}", as_json ? json_of(run, status) : text_of(run, status));
  }
  return ExitCode::done;
}

}  // namespace lockstep::launch
