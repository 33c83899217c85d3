#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "inference/beam_options.h"

namespace lockstep {

struct TokenBias {
  int32_t token;
  double bias;
};

// How one request is continued. docs/decoding.md has the order in which these apply.
struct SamplingOptions {
  int64_t max_tokens = 128;
  std::vector<std::string> stop;  // the text ends before the first of these
  uint64_t seed = 0;
  std::optional<int64_t> logprobs;  // so many of the likeliest tokens are reported at each place

  // Changes of the logits (inference/logits_processors.h).
  std::vector<TokenBias> logit_bias;                   // in [-1e6, 1e6]
  double repetition_penalty = 1;                       // in [1e-6, 1e6]; 1: none
  double presence_penalty = 0, frequency_penalty = 0;  // in [-2, 2]
  int64_t no_repeat_ngram_size = 0;                    // 0: none
  std::vector<int32_t> force_first;                    // what the continuation begins with
  std::vector<int32_t> forbid;                         // never
  std::vector<int32_t> forbid_first;                   // not as the first token

  // The choice (inference/sampling.h).
  bool greedy = false;
  double temperature = 1;  // 0: greedy
  int64_t top_k = 0;       // 0: all
  double top_p = 1;        // in [0, 1]; 1: all, 0: the likeliest
  double min_p = 0;        // in [0, 1]; 0: all
  double typical_p = 1;    // in (0, 1]; 1: all
  BeamOptions beams;       // instead of a choice token by token
};

// Throws UsageError, naming the option as the command line does, for a value outside the ranges
// above, an empty stop text, a token with two biases, and options that contradict each other:
// greedy with anything that only random choices use, a token both forced and forbidden.
void validate(const SamplingOptions& options);

// Throws UsageError when an option names a token outside a vocabulary of this size.
void validate_tokens(const SamplingOptions& options, int64_t vocab_size);

}  // namespace lockstep
