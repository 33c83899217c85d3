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
#include "inference/sampling.h"
#include "inference/sampling_options.h"
#include "model/config.h"

namespace lockstep {

enum class FinishReason { length, stop, end_of_text, context, interrupted };
std::string_view name(FinishReason reason);

struct GenerationStatistics {
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0;       // of the pass over the prompt
  double first_token_seconds = 0;  // from the call to the choice of the first token
  // After the first token: passes over one token each, what they took, choices and text included,
  // and what they had to read: every weight that takes part, and keys and values so far.
  int64_t passes = 0;
  double passes_seconds = 0;
  int64_t passes_bytes = 0;
  int64_t kv_cache_bytes = 0, kv_cache_tokens = 0;  // its room
};

struct Completion {
  std::vector<int32_t> tokens;          // generated, end-of-text not included
  std::vector<PlaceLogprobs> logprobs;  // one a token, where they were asked for
  std::string text;                     // of the tokens, cut before a stop text
  FinishReason finish_reason = FinishReason::length;
  double seconds = 0;  // of generation after the prompt
  GenerationStatistics statistics;
};

struct ContinuationScore {
  double logprob = 0;     // of all its tokens, nats
  bool likeliest = true;  // each of its tokens is the likeliest in its place
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
  // stop text). `stream_index` keys the random numbers beside the seed: the prompt's place. Asks
  // `interrupted`, if there is one, before each token whether to end here.
  // Throws UsageError when the prompt does not fit the context, and for options that do not do.
  Completion generate(const std::string& prompt, const SamplingOptions& options,
                      uint64_t stream_index, const std::function<void(std::string_view)>& on_text,
                      const std::function<bool()>& interrupted = nullptr);

  // How likely each continuation is after the context; neither is empty. Where both do not fit into
  // the model's context, the context loses its beginning. Throws UsageError for a continuation of
  // more tokens than the model's context.
  std::vector<ContinuationScore> score(std::span<const int32_t> context,
                                       std::span<const std::vector<int32_t>> continuations);

  // Logits (V) fp32 of the token after these, for tests and tools.
  std::vector<float> next_token_logits(std::span<const int32_t> tokens);

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep
