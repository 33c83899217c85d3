#include "checkpoints/verify.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "checkpoints/checkpoint.h"
#include "checkpoints/step_folder.h"
#include "core/check.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> faults(const fs::path& step_folder, bool every_byte) {
  std::vector<std::string> found;
  try {
    const StepFolder folder(step_folder);
    for (const Shard& shard : folder.shards()) {
      try {
        const SealedFile file = folder.open_shard(shard);
        if (!every_byte) continue;
        for (std::string& line : file.damaged_data()) found.push_back(std::move(line));
      } catch (const DataError& error) {
        found.emplace_back(error.what());
      }
    }
  } catch (const DataError& error) {
    found.emplace_back(error.what());
  }
  return found;
}

}  // namespace

std::vector<std::string> faults_of_headers(const fs::path& step_folder) {
  return faults(step_folder, false);
}

std::vector<std::string> faults_of_step(const fs::path& step_folder) {
  return faults(step_folder, true);
}

std::vector<int64_t> list_checkpoints(const fs::path& run_folder) {
  constexpr std::string_view kPrefix = "step-";
  std::vector<int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator it(run_folder / "checkpoints", error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(kPrefix) || name.size() > kPrefix.size() + 18 ||
        name.find_first_not_of("0123456789", kPrefix.size()) != std::string::npos ||
        name.size() == kPrefix.size()) {
      continue;
    }
    const int64_t step = std::stoll(name.substr(kPrefix.size()));
    if (it->path() == checkpoint_folder(run_folder, step)) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<fs::path> newest_good_checkpoint(const fs::path& run_folder) {
  std::vector<int64_t> steps = list_checkpoints(run_folder);
  std::vector<std::string> damaged;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    fs::path folder = checkpoint_folder(run_folder, *step);
    const std::vector<std::string> found = faults_of_step(folder);
    if (found.empty()) return folder;
    spdlog::warn("skipping a damaged checkpoint: {}", found.front());
    damaged.push_back(found.front());
  }
  if (damaged.empty()) return std::nullopt;
  throw DataError("no checkpoint of {} is good; the newest: {}", run_folder.string(),
                  damaged.front());
}

std::vector<std::string> verify_checkpoint(const fs::path& path) {
  try {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      const SealedFile file(path);
      require_model(file);
      return file.damaged_data();
    }
    if (!fs::exists(path / "checkpoints", error)) return faults_of_step(path);
  } catch (const DataError& error) {
    return {error.what()};
  }
  std::vector<std::string> found;
  const std::vector<int64_t> steps = list_checkpoints(path);
  if (steps.empty()) throw DataError("{} holds no checkpoint", path.string());
  for (const int64_t step : steps) {
    for (std::string& line : faults_of_step(checkpoint_folder(path, step))) {
      found.push_back(std::move(line));
    }
  }
  return found;
}

}  // namespace lockstep
