#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
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

// Of the tokens that a draft proposed (inference/speculation.h).
struct DraftStatistics {
  int64_t proposed = 0, accepted = 0;  // accepted: into the text, its end included
};

struct GenerationStatistics {
  int64_t prompt_tokens = 0;
  int64_t shared_tokens = 0;       // of them, whose keys and values another request had computed
  double prompt_seconds = 0;       // of the pass over the others, and over prompts beside this one
  double first_token_seconds = 0;  // from the request's start to the choice of the first token
  // After the first token: passes, each over one token and what a draft proposes after it, what
  // they took, choices, text and the rest of the batch included, and what they and the draft had to
  // read: the request's share of every weight that takes part, and its keys and values so far.
  int64_t passes = 0;
  int64_t passes_tokens = 0;  // that they brought, each beam's one: of the text, its end included
  double passes_seconds = 0;
  int64_t passes_bytes = 0;
  int64_t kv_cache_bytes = 0, kv_cache_tokens = 0;  // room of its pages; the draft's: bytes alone
  std::optional<DraftStatistics> draft;
};

// What beam search returns.
struct ScoredText {
  std::vector<int32_t> tokens;
  std::string text;
  FinishReason finish_reason = FinishReason::length;
  double score = 0;  // inference/beam_search.h
};

struct Completion {
  std::vector<int32_t> tokens;          // generated, end-of-text not included
  std::vector<PlaceLogprobs> logprobs;  // one a token, where they were asked for
  std::string text;                     // of the tokens, cut before a stop text
  FinishReason finish_reason = FinishReason::length;
  std::vector<ScoredText> beams;  // of beam search: the best is also that of the fields above
  double seconds = 0;             // of generation after the prompt
  GenerationStatistics statistics;
};

struct GenerationRequest {
  std::string prompt;
  SamplingOptions options;
  uint64_t stream_index = 0;  // keys the random numbers beside the seed: the prompt's place
  // Gets pieces of text as they become certain: whole characters, never a part of a stop text.
  std::function<void(std::string_view)> on_text = nullptr;
  // The prompt loses its beginning where it is longer than the model's context less max_tokens, as
  // lm-eval has it; else one beyond the context is refused.
  bool truncate_prompt = false;
  // "prompts.jsonl:3: ", to precede an error; where it is empty, the prompt's number does.
  std::string origin = "";
};

// How many requests run together.
struct BatchLimits {
  int64_t batch_size = 16;                                       // requests
  int64_t kv_cache_bytes = std::numeric_limits<int64_t>::max();  // for their keys and values
};

// Which request is taken up next, by its place in the list. Asked when there is a place for it,
// until none is left.
using NextRequest = std::function<std::optional<size_t>()>;

struct ContinuationScore {
  double logprob = 0;     // of all its tokens, nats
  bool likeliest = true;  // each of its tokens is the likeliest in its place
};

// Weights of one model in compute precision or quantized, requests that it continues, and
// continuations that it scores.
class Generator {
 public:
  Generator(const Checkpoint& checkpoint, DType precision, Device device = Device::cpu);
  ~Generator();
  const ModelConfig& config() const;
  const Tokenizer& tokenizer() const;

  // From now on a draft proposes tokens (inference/speculation.h): this model, in the same
  // precision and on the same device, or what stands in the text already
  // (inference/prompt_lookup.h). Throws DataError when the draft has another tokenizer.
  void draft_with(const Checkpoint& draft);
  void draft_by_prompt_lookup();

  // Runs requests together (inference/batch.h), and hands each over when it is done, with its place
  // in `requests`. Asks `interrupted`, if there is one, after each pass whether all end here, and
  // `next`, if there is one, instead of taking them in order. On the CPU, a completion but for its
  // times and shares is the same in any batch.
  //
  // Throws UsageError when a prompt does not fit the context or the memory, and for options that do
  // not do, before anything is computed.
  void generate(std::span<const GenerationRequest> requests, const BatchLimits& limits,
                const std::function<void(size_t, Completion)>& on_done,
                const std::function<bool()>& interrupted = nullptr,
                const NextRequest& next = nullptr);

  // The same for one.
  Completion generate(const std::string& prompt, const SamplingOptions& options,
                      uint64_t stream_index, const std::function<void(std::string_view)>& on_text,
                      const std::function<bool()>& interrupted = nullptr);

  // How likely each continuation is after the context; neither is empty. Where both do not fit into
  // the model's context, the context loses its beginning. Throws UsageError for a continuation of
  // more tokens than the model's context, DataError when logits are not numbers.
  std::vector<ContinuationScore> score(std::span<const int32_t> context,
                                       std::span<const std::vector<int32_t>> continuations);

  // Logits (V) fp32 of the token after these, for tests and tools.
  std::vector<float> next_token_logits(std::span<const int32_t> tokens);

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep
