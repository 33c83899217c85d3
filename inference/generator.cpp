#include "inference/generator.h"

#include <algorithm>
#include <chrono>

#include "core/check.h"
#include "inference/sampling.h"
#include "inference/text_stream.h"
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
  }
  CHECK(false);
}

namespace {

Buffer read_weights(const Checkpoint& checkpoint, DType precision, Device device) {
  Buffer weights(precision, {checkpoint.table().size()}, device);
  checkpoint.read(FlatKind::weights, 0, weights.tensor());
  return weights;
}

}  // namespace

class Generator::Implementation {
 public:
  Implementation(const Checkpoint& checkpoint, DType precision, Device device)
      : precision_(precision),
        device_(device),
        tokenizer_(Tokenizer::from_json(checkpoint.info().tokenizer_json,
                                        checkpoint.path().string() + ": tokenizer")),
        weights_(read_weights(checkpoint, precision, device)),
        decoder_(checkpoint.info().model, weights_.tensor()),
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
                      uint64_t stream_index, const std::function<void(std::string_view)>& on_text);

  // Logits of what comes after these tokens and all before them in the cache.
  std::span<const float> next_logits(std::span<const int32_t> tokens, KvCache& cache) {
    // Tensors are views that may be written; the decoder only reads this one.
    decoder_.forward(Tensor(const_cast<int32_t*>(tokens.data()), DType::int32,
                            {static_cast<int64_t>(tokens.size())}),
                     cache, hidden_.tensor());
    decoder_.logits(logits_.tensor(), hidden_.tensor());
    return {logits_.tensor().as<float>(), static_cast<size_t>(config().vocab_size)};
  }

  KvCache cache(int64_t capacity) const { return KvCache(config(), capacity, precision_, device_); }

 private:
  std::vector<int32_t> prompt_tokens(const std::string& prompt) const;

  const DType precision_;
  const Device device_;
  const Tokenizer tokenizer_;
  const Buffer weights_;
  Decoder decoder_;
  const Buffer hidden_, logits_;
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

Completion Generator::Implementation::generate(
    const std::string& prompt, const SamplingOptions& options, uint64_t stream_index,
    const std::function<void(std::string_view)>& on_text) {
  validate(options);
  const std::vector<int32_t> tokens = prompt_tokens(prompt);
  const auto prompt_size = static_cast<int64_t>(tokens.size());
  // The last token needs no place in the cache: nothing is computed from it.
  const int64_t room = config().context_length - prompt_size + 1;
  const int64_t most = std::min(room, options.max_tokens);
  KvCache kv = cache(prompt_size + most - 1);
  TextStream text(options.stop, on_text);
  // Ids that the tokenizer does not know (a padded vocabulary) are never chosen.
  const auto known = static_cast<size_t>(tokenizer_.vocab_size());

  Completion completion;
  completion.finish_reason =
      most < options.max_tokens ? FinishReason::context : FinishReason::length;
  std::span<const float> logits = next_logits(tokens, kv);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < most; i++) {
    if (i > 0) logits = next_logits(std::span(&completion.tokens.back(), 1), kv);
    const int32_t token = sample(logits.first(known), options, stream_index, prompt_size + i);
    if (token == tokenizer_.end_of_text()) {
      completion.finish_reason = FinishReason::end_of_text;
      break;
    }
    completion.tokens.push_back(token);
    if (text.push(tokenizer_.token_bytes(token))) {
      completion.finish_reason = FinishReason::stop;
      break;
    }
  }
  text.finish();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  completion.seconds = elapsed.count();
  completion.text = text.text();
  return completion;
}

Generator::Generator(const Checkpoint& checkpoint, DType precision, Device device)
    : implementation_(std::make_unique<Implementation>(checkpoint, precision, device)) {}
Generator::~Generator() = default;

const ModelConfig& Generator::config() const { return implementation_->config(); }
const Tokenizer& Generator::tokenizer() const { return implementation_->tokenizer(); }

Completion Generator::generate(const std::string& prompt, const SamplingOptions& options,
                               uint64_t stream_index,
                               const std::function<void(std::string_view)>& on_text) {
  return implementation_->generate(prompt, options, stream_index, on_text);
}

std::vector<float> Generator::next_token_logits(std::span<const int32_t> tokens) {
  KvCache kv = implementation_->cache(static_cast<int64_t>(tokens.size()));
  const std::span<const float> logits = implementation_->next_logits(tokens, kv);
  return {logits.begin(), logits.end()};
}

}  // namespace lockstep
