#include "inference/token_logits.h"

namespace lockstep {

std::span<const float> TokenLogits::after(std::span<const NewTokens> batch, kernels::Rows rows) {
  int64_t count = 0;
  for (const NewTokens& n : batch) count += n.wanted;
  if (count * config().vocab_size > logits_.tensor().size()) {
    hidden_ = Buffer(precision_, {count, config().hidden_size}, device_);
    logits_ = Buffer(DType::fp32, {count, config().vocab_size});
  }
  const Tensor hidden = hidden_.tensor().slice(0, count), logits = logits_.tensor().slice(0, count);
  decoder_.forward(batch, rows, hidden);
  decoder_.logits(logits, hidden);
  return {logits.as<float>(), static_cast<size_t>(logits.size())};
}

}  // namespace lockstep
