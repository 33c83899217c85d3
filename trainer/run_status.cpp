#include "trainer/run_status.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using State = RunStatus::State;

constexpr std::array<std::pair<State, const char*>, 5> kNames{{{State::running, "running"},
                                                               {State::finished, "finished"},
                                                               {State::stopped, "stopped"},
                                                               {State::failed, "failed"},
                                                               {State::lost, "lost"}}};

// No number of a status file is larger, losses aside.
constexpr double kMost = 1e15;

ordered_json or_null(const std::optional<double>& value) {
  return value && std::isfinite(*value) ? ordered_json(*value) : ordered_json();
}

std::optional<double> number(const json& object, const char* key) {
  const json& value = object.at(key);
  return value.is_null() ? std::nullopt : std::optional(value.get<double>());
}

// Of seconds or a rate.
std::optional<double> amount(const json& object, const char* key) {
  const auto value = number(object, key);
  if (value && std::abs(*value) > kMost) throw DataError("'{}' cannot be {}", key, *value);
  return value;
}

// Of steps, or unix seconds.
int64_t count(const json& object, const char* key) {
  const json& value = object.at(key);
  const int64_t whole = value.is_number_integer() ? value.get<int64_t>() : -1;
  if (whole < 0 || whole > static_cast<int64_t>(kMost))
    throw DataError("'{}' cannot be {}", key, value.dump(-1, ' ', true));
  return whole;
}

}  // namespace

int64_t unix_now() {
  return std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
}

std::string_view name(State state) {
  for (const auto& [value, text] : kNames) {
    if (value == state) return text;
  }
  CHECK(false, "no such state");
  return "";
}

std::filesystem::path status_file(const std::filesystem::path& run) { return run / "status.json"; }

ordered_json to_json(const RunStatus& s) {
  ordered_json workers = ordered_json::array();
  for (size_t rank = 0; rank < s.hosts.size(); rank++) {
    workers.push_back({{"rank", rank}, {"host", s.hosts[rank]}, {"slow", false}});
  }
  for (const int rank : s.slow_workers) workers.at(static_cast<size_t>(rank))["slow"] = true;
  ordered_json object{{"state", name(s.state)},
                      {"reason", s.reason.empty() ? ordered_json() : ordered_json(s.reason)},
                      {"step", s.step},
                      {"steps", s.steps},
                      {"loss", or_null(s.loss)},
                      {"validation_loss", or_null(s.validation_loss)},
                      {"tokens_per_second", or_null(s.tokens_per_second)},
                      {"seconds_left", or_null(s.seconds_left)},
                      {"time_limit_left", or_null(s.time_limit_left)},
                      {"last_checkpoint", ordered_json()},
                      {"workers", workers},
                      {"warnings", s.warnings},
                      {"heartbeat", s.heartbeat}};
  if (s.last_checkpoint) {
    object["last_checkpoint"] = {{"step", s.last_checkpoint->step},
                                 {"time", s.last_checkpoint->time}};
  }
  const json holder = to_json(s.holder);
  for (const auto& [key, value] : holder.items()) object[key] = value;
  object["version"] = s.version;
  return object;
}

RunStatus run_status_from_json(const json& object) {
  RunStatus s;
  try {
    const auto state = object.at("state").get<std::string>();
    const auto* known = std::find_if(kNames.begin(), kNames.end(),
                                     [&](const auto& entry) { return entry.second == state; });
    if (known == kNames.end()) throw DataError("unknown state '{}'", state);
    s.state = known->first;
    if (!object.at("reason").is_null()) s.reason = object["reason"];
    s.step = count(object, "step"), s.steps = count(object, "steps");
    s.loss = number(object, "loss"), s.validation_loss = number(object, "validation_loss");
    s.tokens_per_second = amount(object, "tokens_per_second");
    s.seconds_left = amount(object, "seconds_left");
    s.time_limit_left = amount(object, "time_limit_left");
    if (const json& last = object.at("last_checkpoint"); !last.is_null()) {
      s.last_checkpoint = {count(last, "step"), count(last, "time")};
    }
    for (const json& worker : object.at("workers")) {
      if (worker.at("slow")) s.slow_workers.push_back(static_cast<int>(s.hosts.size()));
      s.hosts.push_back(worker.at("host"));
    }
    s.warnings = object.at("warnings").get<std::vector<std::string>>();
    s.heartbeat = count(object, "heartbeat");
    s.holder = holder_from_json(object);
    s.version = object.at("version");
  } catch (const json::exception& error) {
    throw DataError("a field is missing or of another kind ({})", error.what());
  }
  return s;
}

std::optional<RunStatus> read_status(const std::filesystem::path& run) {
  const std::filesystem::path file = status_file(run);
  if (!std::filesystem::exists(file)) return std::nullopt;
  try {
    const json object = json::parse(read_file(file), nullptr, false);
    if (object.is_discarded()) throw DataError("it is no JSON");
    return run_status_from_json(object);
  } catch (const DataError& error) {
    throw DataError("{} is damaged: {}", file.string(), error.what());
  }
}

StatusFile::StatusFile(const RunLease& lease, std::string version) : lease_(lease) {
  status_.holder = lease.self();
  status_.version = std::move(version);
}

void StatusFile::open(const std::filesystem::path& run) {
  std::lock_guard lock(file_mutex_);
  file_ = status_file(run);
}

void StatusFile::update(const std::function<void(RunStatus&)>& change) {
  std::lock_guard lock(mutex_);
  change(status_);
}

void StatusFile::write() {
  std::lock_guard lock(file_mutex_);
  if (file_.empty() || lease_.lost()) return;
  std::string text;
  update([&](RunStatus& status) {
    status.heartbeat = unix_now();
    text = to_json(status).dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  });
  write_file_atomically(file_, text, Flush::no);  // from the thread of the beats, or of training
}

void StatusFile::end(State state, const std::string& reason) noexcept {
  update([&](RunStatus& status) {
    status.state = state;
    if (!reason.empty()) status.reason = reason;
    status.warnings.clear();  // they hold now
    status.seconds_left.reset();
    status.time_limit_left.reset();
  });
  try {
    write();
  } catch (const std::exception& error) {
    spdlog::warn("how the run ended is not noted: {}", error.what());
  }
}

}  // namespace lockstep
