#pragma once
#include <cstdint>

#include "data/dataset.h"
#include "inference/weights.h"

namespace lockstep {

// Two models on the same tokens, in the windows of `evaluate`.
struct Comparison {
  int64_t tokens = 0;  // predicted
  double perplexity_before = 0, perplexity_after = 0;
  double kl_divergence = 0;    // mean over tokens of sum p ln(p / q), nats: p before, q after
  double top_1_agreement = 0;  // share of tokens where both find the same token likeliest
};

// Compares `after` with `before`, of the same configuration, on the first max_tokens predicted
// tokens of a split, rounded up to whole windows; 0: on all. Throws DataError when the split has
// fewer than 2 tokens, or when a logit is not finite. CPU only.
Comparison compare(const ModelConfig& config, const Weights& before, const Weights& after,
                   const TokenStream& split, int64_t max_tokens);

}  // namespace lockstep
