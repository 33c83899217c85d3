#include "inference/generator.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "core/check.h"
#include "inference/text_stream.h"
#include "inference/weights.h"
#include "model/decoder.h"

namespace lockstep {

std::string_view name(FinishReason reason) {
  switch (reason) {
    case FinishReason::length:
      return "length";
    case FinishReason::stop:
      return "stop";
    case FinishReason::end_of_text:
      return "end_of_text";
    case FinishReason::context:
      return "context";
    case FinishReason::interrupted:
      return "interrupted";
  }
  CHECK(false);
}

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

class Generator::Implementation {
 public:
  Implementation(const Checkpoint& checkpoint, DType precision, Device device)
      : precision_(precision),
        device_(device),
        tokenizer_(Tokenizer::from_json(checkpoint.info().tokenizer_json,
                                        checkpoint.path().string() + ": tokenizer")),
        weights_(checkpoint, precision, device),
        decoder_(checkpoint.info().model, weights_.parameters()),
        hidden_(precision, {1, config().hidden_size}, device),
        logits_(DType::fp32, {1, config().vocab_size}) {
    if (tokenizer_.vocab_size() > config().vocab_size) {
      throw DataError("{}: the tokenizer has {} tokens, the model {}", checkpoint.path().string(),
                      tokenizer_.vocab_size(), config().vocab_size);
    }
  }

  const ModelConfig& config() const { return decoder_.config(); }
  const Tokenizer& tokenizer() const { return tokenizer_; }

  Completion generate(const std::string& prompt, const SamplingOptions& options,
                      uint64_t stream_index, const std::function<void(std::string_view)>& on_text,
                      const std::function<bool()>& interrupted);

  // Logits of what comes after these tokens and all before them in the cache.
  std::span<const float> next_logits(std::span<const int32_t> tokens, KvCache& cache) {
    // Tensors are views that may be written; the decoder only reads this one.
    decoder_.forward(Tensor(const_cast<int32_t*>(tokens.data()), DType::int32,
                            {static_cast<int64_t>(tokens.size())}),
                     cache, hidden_.tensor());
    decoder_.logits(logits_.tensor(), hidden_.tensor());
    return {logits_.tensor().as<float>(), static_cast<size_t>(config().vocab_size)};
  }

  std::vector<ContinuationScore> score(std::span<const int32_t> context,
                                       std::span<const std::vector<int32_t>> continuations);

  KvCache cache(int64_t capacity) const { return KvCache(config(), capacity, precision_, device_); }

 private:
  std::vector<int32_t> prompt_tokens(const std::string& prompt) const;
  ContinuationScore score_after(std::span<const int32_t> tokens, KvCache& cache);
  std::optional<FinishReason> take(int32_t token, std::span<const float> logits,
                                   const SamplingOptions& options, TextStream& text,
                                   Completion& completion) const;

  const DType precision_;
  const Device device_;
  const Tokenizer tokenizer_;
  const Weights weights_;
  Decoder decoder_;
  const Buffer hidden_, logits_;
  SamplingBuffers buffers_;
};

// Special tokens in the prompt count as such. Nothing to continue: a new document.
std::vector<int32_t> Generator::Implementation::prompt_tokens(const std::string& prompt) const {
  std::vector<int32_t> tokens = tokenizer_.encode_with_special_tokens(prompt);
  if (tokens.empty()) {
    if (!tokenizer_.end_of_text()) {
      throw UsageError("the prompt is empty, and the model has no end-of-text token to start from");
    }
    tokens.push_back(*tokenizer_.end_of_text());
  }
  const auto count = static_cast<int64_t>(tokens.size());
  if (count > config().context_length) {
    throw UsageError("the prompt has {} tokens; the model's context holds {}", count,
                     config().context_length);
  }
  return tokens;
}

// Adds a token to the completion, or says why it ends here.
std::optional<FinishReason> Generator::Implementation::take(int32_t token,
                                                            std::span<const float> logits,
                                                            const SamplingOptions& options,
                                                            TextStream& text,
                                                            Completion& completion) const {
  if (token == tokenizer_.end_of_text()) return FinishReason::end_of_text;
  completion.tokens.push_back(token);
  if (options.logprobs) {
    completion.logprobs.push_back(
        logprobs(logits, token, *options.logprobs, tokenizer_.vocab_size()));
  }
  if (text.push(tokenizer_.token_bytes(token))) return FinishReason::stop;
  return std::nullopt;
}

Completion Generator::Implementation::generate(const std::string& prompt,
                                               const SamplingOptions& options,
                                               uint64_t stream_index,
                                               const std::function<void(std::string_view)>& on_text,
                                               const std::function<bool()>& interrupted) {
  const auto call = std::chrono::steady_clock::now();
  validate(options);
  validate_tokens(options, tokenizer_.vocab_size());
  std::vector<int32_t> tokens = prompt_tokens(prompt);
  const auto prompt_size = tokens.size();
  // The last token needs no place in the cache: nothing is computed from it.
  const int64_t room = config().context_length - static_cast<int64_t>(prompt_size) + 1;
  const int64_t most = std::min(room, options.max_tokens);
  KvCache kv = cache(static_cast<int64_t>(prompt_size) + most - 1);
  TextStream text(options.stop, on_text);
  // Ids that the tokenizer does not know (a padded vocabulary) are never chosen.
  const auto known = static_cast<size_t>(tokenizer_.vocab_size());

  Completion completion;
  completion.finish_reason =
      most < options.max_tokens ? FinishReason::context : FinishReason::length;
  GenerationStatistics& statistics = completion.statistics;
  statistics.prompt_tokens = static_cast<int64_t>(prompt_size);
  statistics.kv_cache_bytes = kv.size_bytes();
  statistics.kv_cache_tokens = kv.capacity();
  const auto prompt_start = std::chrono::steady_clock::now();
  std::span<const float> logits = next_logits(tokens, kv);
  statistics.prompt_seconds = seconds_since(prompt_start);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < most; i++) {
    if (interrupted && interrupted()) {
      completion.finish_reason = FinishReason::interrupted;
      break;
    }
    if (i > 0) {
      logits = next_logits(std::span(&tokens.back(), 1), kv);
      statistics.passes++;
      statistics.passes_bytes +=
          weights_.bytes_read_a_token() + kv.size_bytes() * kv.length() / kv.capacity();
    }
    const int32_t token =
        sample(logits.first(known), {tokens, prompt_size}, options, stream_index, buffers_);
    if (i == 0) statistics.first_token_seconds = seconds_since(call);
    if (const auto reason = take(token, logits, options, text, completion)) {
      completion.finish_reason = *reason;
      break;
    }
    tokens.push_back(token);
  }
  text.finish();
  completion.seconds = seconds_since(start);
  statistics.passes_seconds = seconds_since(call) - statistics.first_token_seconds;
  completion.text = text.text();
  return completion;
}

// Of all tokens but the first, which the cache does not hold yet. Leaves the cache as it was.
ContinuationScore Generator::Implementation::score_after(std::span<const int32_t> tokens,
                                                         KvCache& cache) {
  const int64_t before = cache.length(), count = static_cast<int64_t>(tokens.size()) - 1;
  const Buffer hidden(precision_, {count, config().hidden_size}, device_);
  const Buffer logits(DType::fp32, {count, config().vocab_size});
  decoder_.forward(Tensor(const_cast<int32_t*>(tokens.data()), DType::int32, {count}), cache,
                   hidden.tensor());
  decoder_.logits(logits.tensor(), hidden.tensor());
  cache.truncate(before);
  ContinuationScore score;
  const auto width = static_cast<size_t>(config().vocab_size);
  for (size_t i = 0; i < static_cast<size_t>(count); i++) {
    const std::span<const float> row(logits.tensor().as<float>() + i * width, width);
    const PlaceLogprobs place = logprobs(row, tokens[i + 1], 1, config().vocab_size);
    score.logprob += place.chosen.logprob;
    score.likeliest = score.likeliest && place.top.front().token == tokens[i + 1];
  }
  return score;
}

std::vector<ContinuationScore> Generator::Implementation::score(
    std::span<const int32_t> context, std::span<const std::vector<int32_t>> continuations) {
  const auto most = static_cast<size_t>(config().context_length);
  size_t longest = 1;
  for (const auto& continuation : continuations) longest = std::max(longest, continuation.size());
  KvCache kv = cache(static_cast<int64_t>(std::min(most, context.size() + longest)));
  size_t kept = 0;  // tokens at the end of the context of which the cache holds all but the last
  std::vector<ContinuationScore> scores;
  for (const std::vector<int32_t>& continuation : continuations) {
    CHECK(!context.empty() && !continuation.empty());
    if (continuation.size() > most) {
      throw UsageError("a continuation of {} tokens is longer than the model's context of {}",
                       continuation.size(), most);
    }
    // The last token of a continuation is not fed in: nothing follows it.
    const size_t size = std::min(context.size(), most + 1 - continuation.size());
    const auto end = context.last(size);
    if (size != kept) {
      kv.truncate(0);
      if (size > 1) next_logits(end.first(size - 1), kv);
      kept = size;
    }
    std::vector<int32_t> tokens = {end.back()};
    tokens.insert(tokens.end(), continuation.begin(), continuation.end());
    scores.push_back(score_after(tokens, kv));
  }
  return scores;
}

Generator::Generator(const Checkpoint& checkpoint, DType precision, Device device)
    : implementation_(std::make_unique<Implementation>(checkpoint, precision, device)) {}
Generator::~Generator() = default;

const ModelConfig& Generator::config() const { return implementation_->config(); }
const Tokenizer& Generator::tokenizer() const { return implementation_->tokenizer(); }

Completion Generator::generate(const std::string& prompt, const SamplingOptions& options,
                               uint64_t stream_index,
                               const std::function<void(std::string_view)>& on_text,
                               const std::function<bool()>& interrupted) {
  return implementation_->generate(prompt, options, stream_index, on_text, interrupted);
}

std::vector<ContinuationScore> Generator::score(
    std::span<const int32_t> context, std::span<const std::vector<int32_t>> continuations) {
  return implementation_->score(context, continuations);
}

std::vector<float> Generator::next_token_logits(std::span<const int32_t> tokens) {
  KvCache kv = implementation_->cache(static_cast<int64_t>(tokens.size()));
  const std::span<const float> logits = implementation_->next_logits(tokens, kv);
  return {logits.begin(), logits.end()};
}

}  // namespace lockstep
