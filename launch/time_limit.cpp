#include "launch/time_limit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <stdexcept>
#include <vector>

#include "launch/options.h"

namespace lockstep::launch {
namespace {

constexpr int64_t kMost = 366L * 86400;  // seconds

[[noreturn]] void refuse() {
  throw std::invalid_argument(
      "a time is needed, such as 5400 (seconds), 90m, 2h30m, 1:30:00, or 1-12:00:00 (a day and a "
      "half); or none");
}

int64_t digits(const std::string& text) {
  const bool all =
      !text.empty() && text.size() <= 9 &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  if (!all) refuse();
  return std::stoll(text);
}

// "2h30m": each unit once, the larger first.
double with_units(const std::string& text) {
  constexpr std::pair<char, int64_t> kUnits[] = {{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};
  double seconds = 0;
  size_t begin = 0;
  for (const auto& [letter, unit] : kUnits) {
    const size_t end = text.find(letter, begin);
    if (end == std::string::npos) continue;
    seconds += static_cast<double>(digits(text.substr(begin, end - begin)) * unit);
    begin = end + 1;
  }
  if (begin != text.size()) refuse();
  return seconds;
}

// Of [D-]HH:MM:SS. Behind days, what is left out is at the end; without them, at the beginning.
double with_colons(std::string text) {
  double days = 0;
  const size_t dash = text.find('-');
  const bool has_days = dash != std::string::npos;
  if (has_days) {
    days = static_cast<double>(digits(text.substr(0, dash)));
    text = text.substr(dash + 1);
  }
  std::vector<double> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    parts.push_back(static_cast<double>(digits(text.substr(begin, end - begin))));
    begin = end + 1;
  }
  if (parts.size() > 3) refuse();
  while (parts.size() < 3) parts.insert(has_days ? parts.end() : parts.begin(), 0);
  return 86400 * days + 3600 * parts[0] + 60 * parts[1] + parts[2];
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// What a command prints; empty where it is not there or fails.
std::string output_of(const std::string& command) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  if (!pipe) return text;
  char piece[256];
  while (std::fgets(piece, sizeof(piece), pipe.get()) != nullptr) text += piece;
  return text;
}

// None where it is so far away that it limits nothing; nanoseconds could not count up to it.
std::optional<std::chrono::system_clock::time_point> end_at(std::time_t time) {
  using Clock = std::chrono::system_clock;
  if (time - Clock::to_time_t(Clock::now()) > kMost) return std::nullopt;
  return Clock::from_time_t(time);
}

}  // namespace

double to_duration(const std::string& text) {
  const bool colons = text.find_first_of(":-") != std::string::npos;
  const bool plain = !text.empty() && std::isdigit(static_cast<unsigned char>(text.back())) != 0;
  const double seconds = colons  ? with_colons(text)
                         : plain ? static_cast<double>(digits(text))
                                 : with_units(text);
  if (seconds <= 0 || seconds > static_cast<double>(kMost)) refuse();
  return seconds;
}

std::string slurm_job() {
  const std::string job = environment("SLURM_JOB_ID");
  const bool plain = !job.empty() && std::all_of(job.begin(), job.end(), [](unsigned char c) {
    return std::isdigit(c) != 0;
  });
  return plain ? job : "";
}

std::optional<std::chrono::system_clock::time_point> slurm_job_end() {
  const std::string job = slurm_job();
  if (job.empty()) return std::nullopt;
  const std::string end = environment("SLURM_JOB_END_TIME");
  if (const int64_t seconds = std::atoll(end.c_str()); seconds > 0) {
    return end_at(static_cast<std::time_t>(seconds));
  }
  // KILL: the command has inherited that the other signals are blocked.
  const std::string said =
      output_of(fmt::format("timeout -s KILL 10 squeue -h -j {} -o %e 2>/dev/null", job));
  std::tm local{};
  if (strptime(said.c_str(), "%Y-%m-%dT%H:%M:%S", &local) == nullptr) return std::nullopt;
  local.tm_isdst = -1;
  return end_at(std::mktime(&local));
}

}  // namespace lockstep::launch
