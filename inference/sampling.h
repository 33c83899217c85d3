#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "inference/generator.h"

// From logits to a token: pure functions.
namespace lockstep {

struct Candidate {
  int32_t token;
  double probability;
};

// The tokens that sampling may choose, and their probabilities, in this order:
//   1. temperature: logits / temperature
//   2. top-k: the k largest, and what equals the k-th (Fan et al., 2018)
//   3. top-p: of the softmax of those left, the likeliest tokens until their sum reaches p
//      (Holtzman et al., 2020); among equals the lower id first
// as Hugging Face's processors do. Likeliest first where top-p is in force, else in order of id.
// Greedy (or temperature 0): the largest logit alone, the lowest id of equals.
// Throws DataError when a logit is NaN or positive infinity, or all are negative infinity.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options);

// One of the candidates, drawn by inverting their cumulative sum at a random number that is a
// function of options.seed, `stream_index` (the prompt's place) and `position` (the token's place
// in its sequence) alone.
int32_t sample(std::span<const float> logits, const SamplingOptions& options, uint64_t stream_index,
               int64_t position);

// Throws UsageError, naming the option, for a temperature below 0, top_p outside (0, 1], a negative
// top_k, max_tokens below 1 or an empty stop text.
void validate(const SamplingOptions& options);

}  // namespace lockstep
