#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "inference/sampling_options.h"

// What changes the logits before a token is chosen, also by the greedy choice: biases, penalties
// and bans. Each is a pure function of the scores (V) float64, which it overwrites in place, and of
// the tokens so far. A banned token's score is negative infinity, and stays so.
namespace lockstep {

// A sequence so far.
struct History {
  std::span<const int32_t> tokens;  // prompt, then what was generated
  size_t prompt_size = 0;           // of `tokens`
  std::span<const int32_t> generated() const { return tokens.subspan(prompt_size); }
};

// score[token] += bias (Hugging Face: SequenceBiasLogitsProcessor, of single tokens).
void add_logit_bias(std::span<double> scores, std::span<const TokenBias> biases);

// Of each token that occurs in `tokens`, once however often it does: score / penalty where the
// score is at least 0, else score * penalty (Keskar et al., "CTRL", 2019; Hugging Face:
// RepetitionPenaltyLogitsProcessor). `counts` (V): zeros, and left so.
void penalize_repetition(std::span<double> scores, std::span<const int32_t> tokens, double penalty,
                         std::span<int32_t> counts);

// Of each token that occurs c > 0 times in `generated`: score - c * frequency - presence (OpenAI's
// and vLLM's; the prompt does not count). `counts` (V): zeros, and left so.
void penalize_presence_and_frequency(std::span<double> scores, std::span<const int32_t> generated,
                                     double presence, double frequency, std::span<int32_t> counts);

// Bans each token that would complete a run of `size` tokens that `tokens` holds already (Paulus et
// al., 2018; Hugging Face: NoRepeatNGramLogitsProcessor). size >= 1; 1: each token comes once.
void forbid_repeated_ngrams(std::span<double> scores, std::span<const int32_t> tokens,
                            int64_t size);

void forbid_tokens(std::span<double> scores, std::span<const int32_t> tokens);

// Bans all others, and gives this one the score 0, whatever it was.
void force_token(std::span<double> scores, int32_t token);

// All of them that the options ask for, in Hugging Face's order: bias, repetition, n-grams, forced
// first tokens, forbidden tokens, forbidden first tokens; then presence and frequency, where
// Hugging Face runs processors that a caller adds. `counts` (V): zeros, and left so.
void process_logits(std::span<double> scores, const History& history,
                    const SamplingOptions& options, std::span<int32_t> counts);

}  // namespace lockstep
