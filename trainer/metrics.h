#pragma once
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "inference/evaluate.h"
#include "trainer/train_step.h"

namespace lockstep {

// Each line of a metrics.jsonl, in order; what is no whole object with a step, as the last line of
// a killed run may be, is passed over. Nothing where there is no file.
void for_each_step(const std::filesystem::path& metrics,
                   const std::function<void(int64_t step, const nlohmann::json& object,
                                            const std::string& line)>& f);

// RUN/metrics.jsonl: one JSON object a step, written and flushed when the step is done.
//
//   step, loss, learning_rate, grad_norm, loss_scale, skipped, tokens (so far), tokens_per_second,
//   step_seconds, and on steps with an evaluation validation_loss, validation_bits_per_byte
//
// A number that is not finite is null.
class MetricsFile {
 public:
  // Drops lines of steps after `last_step`, which a run that goes on from there writes again, and
  // what a killed run left unfinished. Throws DataError when the file cannot be written.
  MetricsFile(const std::filesystem::path& path, int64_t last_step);

  void write(const StepResult& result, int64_t tokens, int64_t step_tokens, double step_seconds,
             const std::optional<Evaluation>& evaluation);

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace lockstep
