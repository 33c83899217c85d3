#include "trainer/metrics.h"

#include <nlohmann/json.hpp>

#include "core/file.h"

namespace lockstep {

void for_each_step(const std::filesystem::path& metrics,
                   const std::function<void(int64_t step, const nlohmann::json& object,
                                            const std::string& line)>& f) {
  std::ifstream file(metrics);
  for (std::string line; std::getline(file, line);) {
    const auto object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object() || !object.contains("step")) continue;
    if (!object["step"].is_number_integer()) continue;
    f(object["step"].get<int64_t>(), object, line);
  }
}

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step) : path_(path) {
  if (std::filesystem::exists(path)) {
    std::string kept;
    for_each_step(path, [&](int64_t step, const nlohmann::json&, const std::string& line) {
      if (step <= last_step) kept += line + "\n";
    });
    if (kept != read_file(path)) write_file_atomically(path, kept);
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
