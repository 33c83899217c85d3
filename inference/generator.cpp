#include "inference/generator.h"

#include <algorithm>

#include "core/check.h"
#include "core/range.h"
#include "inference/batch.h"
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

class Generator::Implementation {
 public:
  Implementation(const Checkpoint& checkpoint, DType precision, Device device)
      : precision_(precision),
        device_(device),
        tokenizer_(Tokenizer::from_json(checkpoint.info().tokenizer_json,
                                        checkpoint.path().string() + ": tokenizer")),
        weights_(checkpoint, precision, device),
        decoder_(checkpoint.info().model, weights_.parameters()),
        path_(checkpoint.path().string()) {
    check_vocabulary(checkpoint);
  }

  const ModelConfig& config() const { return decoder_.config(); }
  const Tokenizer& tokenizer() const { return tokenizer_; }

  void draft_with(const Checkpoint& draft);
  void draft_by_prompt_lookup() { draft_source_.emplace(); }

  void generate(std::span<const GenerationRequest> requests, const BatchLimits& limits,
                const std::function<void(size_t, Completion)>& on_done,
                const std::function<bool()>& interrupted, const NextRequest& next) {
    Batch({decoder_, tokenizer_, precision_, device_, weights_.bytes_read_a_token(), draft_source_},
          requests, limits, on_done, interrupted, next)
        .run();
  }

  std::vector<ContinuationScore> score(std::span<const int32_t> context,
                                       std::span<const std::vector<int32_t>> continuations);

  std::vector<float> next_token_logits(std::span<const int32_t> tokens) {
    KvPages pages = one_page(static_cast<int64_t>(tokens.size()));
    KvSequence sequence(pages);
    const Buffer hidden = append(sequence, tokens, 1);
    std::vector<float> logits(static_cast<size_t>(config().vocab_size));
    decoder_.logits(Tensor(logits.data(), DType::fp32, {1, config().vocab_size}), hidden.tensor());
    return logits;
  }

 private:
  struct DraftModel {
    Weights weights;
    Decoder decoder;
  };

  // Whether a model that reads and writes this tokenizer's ids has all of them.
  void check_vocabulary(const Checkpoint& checkpoint) const {
    if (tokenizer_.vocab_size() <= checkpoint.info().model.vocab_size) return;
    throw DataError("{}: the tokenizer has {} tokens, the model {}", checkpoint.path().string(),
                    tokenizer_.vocab_size(), checkpoint.info().model.vocab_size);
  }
  // For one sequence, which shares nothing: of one page, as a GPU's kernels need it.
  KvPages one_page(int64_t tokens) const {
    return KvPages(config(), round_up(tokens, 4), precision_, device_);
  }
  // Returns the states of the last `wanted` tokens.
  Buffer append(KvSequence& sequence, std::span<const int32_t> tokens, int64_t wanted) {
    Buffer hidden(precision_, {wanted, config().hidden_size}, device_);
    const NewTokens all{&sequence, tokens, wanted};
    decoder_.forward(std::span(&all, 1), kernels::Rows::in_tiles, hidden.tensor());
    return hidden;
  }
  ContinuationScore score_after(std::span<const int32_t> tokens, KvSequence& sequence);

  const DType precision_;
  const Device device_;
  const Tokenizer tokenizer_;
  const Weights weights_;
  Decoder decoder_;
  const std::string path_;
  std::unique_ptr<DraftModel> draft_model_;
  std::optional<DraftSource> draft_source_;
};

void Generator::Implementation::draft_with(const Checkpoint& draft) {
  const Tokenizer of_draft =
      Tokenizer::from_json(draft.info().tokenizer_json, draft.path().string() + ": tokenizer");
  if (of_draft.fingerprint() != tokenizer_.fingerprint()) {
    throw DataError(
        "the draft {} has another tokenizer than the model {}: its tokens mean other text\n"
        "take a draft that was trained on a dataset with the model's tokenizer, or prompt-lookup",
        draft.path().string(), path_);
  }
  check_vocabulary(draft);
  Weights weights(draft, precision_, device_);
  Decoder decoder(draft.info().model, weights.parameters());
  draft_model_ = std::make_unique<DraftModel>(std::move(weights), std::move(decoder));
  draft_source_ = {&draft_model_->decoder, draft_model_->weights.bytes_read_a_token()};
}

// Of all tokens but the first, which the sequence does not hold yet. Leaves it as it was.
ContinuationScore Generator::Implementation::score_after(std::span<const int32_t> tokens,
                                                         KvSequence& sequence) {
  const int64_t before = sequence.length(), count = static_cast<int64_t>(tokens.size()) - 1;
  const Buffer hidden = append(sequence, tokens.first(tokens.size() - 1), count);
  const Buffer logits(DType::fp32, {count, config().vocab_size});
  decoder_.logits(logits.tensor(), hidden.tensor());
  sequence.truncate(before);
  ContinuationScore score;
  const auto width = static_cast<size_t>(config().vocab_size);
  for (size_t i = 0; i < static_cast<size_t>(count); i++) {
    const std::span<const float> row(logits.tensor().as<float>() + i * width, width);
    check_logits(row);
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
  KvPages pages = one_page(static_cast<int64_t>(std::min(most, context.size() + longest)));
  KvSequence sequence(pages);
  size_t kept = 0;  // tokens at the end of the context, of which all but the last are in `sequence`
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
      sequence.truncate(0);
      if (size > 1) append(sequence, end.first(size - 1), 0);
      kept = size;
    }
    std::vector<int32_t> tokens = {end.back()};
    tokens.insert(tokens.end(), continuation.begin(), continuation.end());
    scores.push_back(score_after(tokens, sequence));
  }
  return scores;
}

Generator::Generator(const Checkpoint& checkpoint, DType precision, Device device)
    : implementation_(std::make_unique<Implementation>(checkpoint, precision, device)) {}
Generator::~Generator() = default;

const ModelConfig& Generator::config() const { return implementation_->config(); }
const Tokenizer& Generator::tokenizer() const { return implementation_->tokenizer(); }

void Generator::draft_with(const Checkpoint& draft) { implementation_->draft_with(draft); }
void Generator::draft_by_prompt_lookup() { implementation_->draft_by_prompt_lookup(); }

void Generator::generate(std::span<const GenerationRequest> requests, const BatchLimits& limits,
                         const std::function<void(size_t, Completion)>& on_done,
                         const std::function<bool()>& interrupted, const NextRequest& next) {
  size_t place = 0;
  const NextRequest in_order = [&]() -> std::optional<size_t> {
    return place < requests.size() ? std::optional(place++) : std::nullopt;
  };
  implementation_->generate(requests, limits, on_done, interrupted, next ? next : in_order);
}

Completion Generator::generate(const std::string& prompt, const SamplingOptions& options,
                               uint64_t stream_index,
                               const std::function<void(std::string_view)>& on_text,
                               const std::function<bool()>& interrupted) {
  Completion completion;
  const GenerationRequest request{prompt, options, stream_index, on_text};
  generate(
      std::span(&request, 1), BatchLimits(),
      [&](size_t, Completion done) { completion = std::move(done); }, interrupted);
  return completion;
}

std::vector<ContinuationScore> Generator::score(
    std::span<const int32_t> context, std::span<const std::vector<int32_t>> continuations) {
  return implementation_->score(context, continuations);
}

std::vector<float> Generator::next_token_logits(std::span<const int32_t> tokens) {
  return implementation_->next_token_logits(tokens);
}

}  // namespace lockstep
