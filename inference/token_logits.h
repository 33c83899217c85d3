#pragma once
#include <span>

#include "core/tensor.h"
#include "model/decoder.h"

namespace lockstep {

// A decoder with memory for the logits that it computes, kept from pass to pass.
class TokenLogits {
 public:
  TokenLogits(Decoder& decoder, DType precision, Device device)
      : decoder_(decoder), precision_(precision), device_(device) {}

  const ModelConfig& config() const { return decoder_.config(); }

  // Decoder::forward; the logits (M, V) after each of the M wanted tokens, one row behind the
  // other, in the CPU's memory until the next call.
  std::span<const float> after(std::span<const NewTokens> batch, kernels::Rows rows);

 private:
  Decoder& decoder_;
  const DType precision_;
  const Device device_;
  Buffer hidden_, logits_;
};

}  // namespace lockstep
