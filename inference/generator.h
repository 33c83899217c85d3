#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "core/tensor.h"
#include "data/tokenizer.h"
#include "model/config.h"

namespace lockstep {

struct SamplingOptions {
  int64_t max_tokens = 128;
  bool greedy = false;
  double temperature = 1;  // > 0; 0 means greedy
  int64_t top_k = 0;       // 0: all
  double top_p = 1;        // in (0, 1]
  uint64_t seed = 0;
  std::vector<std::string> stop;  // the text ends before the first of these
};

enum class FinishReason { length, stop, end_of_text, context };
std::string_view name(FinishReason reason);

struct Completion {
  std::vector<int32_t> tokens;  // generated, end-of-text not included
  std::string text;             // of the tokens, cut before a stop text
  FinishReason finish_reason = FinishReason::length;
  double seconds = 0;  // of generation after the prompt
};

// Weights of one model in compute precision, and the forward pass of one sequence with a cache of
// keys and values.
class Generator {
 public:
  Generator(const Checkpoint& checkpoint, DType precision, Device device = Device::cpu);
  ~Generator();
  const ModelConfig& config() const;
  const Tokenizer& tokenizer() const;

  // Calls on_text with pieces of text as they become certain (whole characters, never a part of a
  // stop text). `stream_index` keys the random numbers beside the seed: the prompt's place.
  // Throws UsageError when the prompt does not fit the context.
  Completion generate(const std::string& prompt, const SamplingOptions& options,
                      uint64_t stream_index, const std::function<void(std::string_view)>& on_text);

  // Logits (V) fp32 of the token after these, for tests and tools.
  std::vector<float> next_token_logits(std::span<const int32_t> tokens);

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep
