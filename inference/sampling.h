#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "inference/logits_processors.h"
#include "inference/sampling_filters.h"
#include "inference/sampling_options.h"

// From logits to a token: functions of their arguments alone.
namespace lockstep {

// Kept from token to token, so that nothing of a vocabulary's size is allocated for each. What it
// holds between two calls decides nothing.
struct SamplingBuffers {
  std::vector<double> scores, sorted;
  std::vector<int32_t> counts;
  std::vector<Candidate> candidates, by_typicality, residual;
};

// Throws DataError, which names the model, when a logit is NaN or positive infinity, or all are
// negative infinity.
void check_logits(std::span<const float> logits, std::string_view model = "the model");

// ln of the sum of exp(logit), in float64: what ln softmax takes off each logit.
double log_sum_exp(std::span<const float> logits);

// The tokens that the choice may take, and their probabilities: process_logits, then temperature,
// top-k, top-p, min-p and typical-p (Hugging Face's order). Likeliest first where top-p is in
// force, else by id. Greedy (or temperature 0): the largest score alone, the lowest id of equals.
// They live in `buffers`.
//
// Throws as check_logits, and UsageError when the options rule out every token.
std::span<const Candidate> candidates(std::span<const float> logits, const History& history,
                                      const SamplingOptions& options, SamplingBuffers& buffers);

// The same, or none when the options rule out every token.
std::span<const Candidate> candidates_or_none(std::span<const float> logits, const History& history,
                                              const SamplingOptions& options,
                                              SamplingBuffers& buffers,
                                              std::string_view model = "the model");

// Uniform in [0, 1), a multiple of 2^-53: a function of the arguments alone. Numbers of different
// purposes are independent. `place`: of the token in its sequence.
enum class Purpose : uint64_t { choice, draft, acceptance };
double random_number(Purpose purpose, uint64_t seed, uint64_t stream_index, uint64_t place);

// The first candidate up to which the probabilities add up to more than `at`, in [0, 1).
int32_t pick(std::span<const Candidate> candidates, double at);

// One of the candidates, picked by a random number that is a function of options.seed,
// `stream_index` (the prompt's place) and the token's place in its sequence alone.
int32_t sample(std::span<const float> logits, const History& history,
               const SamplingOptions& options, uint64_t stream_index, SamplingBuffers& buffers);

struct TokenLogprob {
  int32_t token;
  double logprob;  // nats
};

// ln softmax(logits): what the model itself says, before any option changes it.
struct PlaceLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // likeliest first; among equals the lower id
};

// Of a token, and the `count` likeliest of the first `vocab_size` (all that there are, if fewer).
PlaceLogprobs logprobs(std::span<const float> logits, int32_t token, int64_t count,
                       int64_t vocab_size);

}  // namespace lockstep
