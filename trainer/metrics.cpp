#include "trainer/metrics.h"

#include <nlohmann/json.hpp>

#include "core/file.h"

namespace lockstep {
namespace {

// The lines of complete objects whose step is at most `last_step`.
std::string kept_lines(const std::string& content, int64_t last_step) {
  std::string kept;
  for (size_t begin = 0, end; (end = content.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    const std::string line = content.substr(begin, end - begin);
    const auto json = nlohmann::ordered_json::parse(line, nullptr, false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    if (json["step"].get<int64_t>() <= last_step) kept += line + "\n";
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step) : path_(path) {
  if (std::filesystem::exists(path)) {
    const std::string content = read_file(path);
    const std::string kept = kept_lines(content, last_step);
    if (kept != content) write_file_atomically(path, kept);
  }
  file_.open(path, std::ios::app);
  if (!file_)
    throw DataError("{} cannot be written: check the folder's permissions", path.string());
}

void MetricsFile::write(const StepResult& result, int64_t tokens, int64_t step_tokens,
                        double step_seconds, const std::optional<Evaluation>& evaluation) {
  nlohmann::ordered_json line{
      {"step", result.step},
      {"loss", result.loss},
      {"learning_rate", result.learning_rate},
      {"grad_norm", result.grad_norm},
      {"loss_scale", result.loss_scale},
      {"skipped", result.skipped},
      {"tokens", tokens},
      {"tokens_per_second", static_cast<double>(step_tokens) / step_seconds},
      {"step_seconds", step_seconds}};
  if (evaluation) {
    line["validation_loss"] = evaluation->loss;
    line["validation_bits_per_byte"] = evaluation->bits_per_byte;
  }
  file_ << line.dump() << '\n' << std::flush;
  if (!file_) throw DataError("{} cannot be written: is the disk full?", path_.string());
}

}  // namespace lockstep
