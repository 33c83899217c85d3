#include "inference/generator.h"

#include "core/check.h"
#include "inference/batch.h"
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

Buffer read_weights(const Checkpoint& checkpoint, DType precision, Device device) {
  Buffer weights(precision, {checkpoint.table().size()}, device);
  checkpoint.read(FlatKind::weights, 0, weights.tensor());
  return weights;
}

// Of the weights that a pass over a few tokens reads: all but the rows of tables that it looks up.
int64_t bytes_read_a_pass(const ParameterTable& table, const ModelConfig& config, DType precision) {
  int64_t count = table.size();
  if (!config.tied_embeddings) count -= table.at("embedding.tokens.weight").shape.size();
  const Parameter* positions = table.find("embedding.positions.weight");
  if (positions != nullptr) count -= positions->shape.size();
  return count * size_bytes(precision);
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
        pass_bytes_(bytes_read_a_pass(checkpoint.table(), config(), precision)) {
    if (tokenizer_.vocab_size() > config().vocab_size) {
      throw DataError("{}: the tokenizer has {} tokens, the model {}", checkpoint.path().string(),
                      tokenizer_.vocab_size(), config().vocab_size);
    }
  }

  const ModelConfig& config() const { return decoder_.config(); }
  const Tokenizer& tokenizer() const { return tokenizer_; }

  void generate(std::span<const GenerationRequest> requests, const BatchLimits& limits,
                const std::function<void(size_t, Completion)>& on_done,
                const std::function<bool()>& interrupted) {
    Batch({decoder_, tokenizer_, precision_, device_, pass_bytes_}, requests, limits, on_done,
          interrupted)
        .run();
  }

  std::vector<float> next_token_logits(std::span<const int32_t> tokens) {
    const auto count = static_cast<int64_t>(tokens.size());
    KvPages pages(config(), (count + 3) / 4 * 4, precision_, device_);
    KvSequence sequence(pages);
    const Buffer hidden(precision_, {1, config().hidden_size}, device_);
    std::vector<float> logits(static_cast<size_t>(config().vocab_size));
    const NewTokens all{&sequence, tokens};
    decoder_.forward(std::span(&all, 1), kernels::Rows::in_tiles, hidden.tensor());
    decoder_.logits(Tensor(logits.data(), DType::fp32, {1, config().vocab_size}), hidden.tensor());
    return logits;
  }

 private:
  const DType precision_;
  const Device device_;
  const Tokenizer tokenizer_;
  const Buffer weights_;
  Decoder decoder_;
  const int64_t pass_bytes_;
};

Generator::Generator(const Checkpoint& checkpoint, DType precision, Device device)
    : implementation_(std::make_unique<Implementation>(checkpoint, precision, device)) {}
Generator::~Generator() = default;

const ModelConfig& Generator::config() const { return implementation_->config(); }
const Tokenizer& Generator::tokenizer() const { return implementation_->tokenizer(); }

void Generator::generate(std::span<const GenerationRequest> requests, const BatchLimits& limits,
                         const std::function<void(size_t, Completion)>& on_done,
                         const std::function<bool()>& interrupted) {
  implementation_->generate(requests, limits, on_done, interrupted);
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

std::vector<float> Generator::next_token_logits(std::span<const int32_t> tokens) {
  return implementation_->next_token_logits(tokens);
}

}  // namespace lockstep
