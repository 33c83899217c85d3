#include "inference/logits_processors.h"

#include <algorithm>
#include <cmath>

namespace lockstep {

void add_logit_bias(std::span<double> scores, std::span<const TokenBias> biases) {
  for (const auto [token, bias] : biases) scores[static_cast<size_t>(token)] += bias;
}

void penalize_repetition(std::span<double> scores, std::span<const int32_t> tokens, double penalty,
                         std::span<int32_t> counts) {
  for (const int32_t token : tokens) {
    if (counts[static_cast<size_t>(token)]++ > 0) continue;
    double& score = scores[static_cast<size_t>(token)];
    score = score < 0 ? score * penalty : score / penalty;
  }
  for (const int32_t token : tokens) counts[static_cast<size_t>(token)] = 0;
}

void penalize_presence_and_frequency(std::span<double> scores, std::span<const int32_t> generated,
                                     double presence, double frequency, std::span<int32_t> counts) {
  for (const int32_t token : generated) counts[static_cast<size_t>(token)]++;
  for (const int32_t token : generated) {
    int32_t& count = counts[static_cast<size_t>(token)];
    if (count > 0) scores[static_cast<size_t>(token)] -= count * frequency + presence;
    count = 0;
  }
}

void forbid_repeated_ngrams(std::span<double> scores, std::span<const int32_t> tokens,
                            int64_t size) {
  const auto context = static_cast<size_t>(size - 1);
  if (tokens.size() < context + 1) return;
  const auto end = tokens.last(context);
  for (size_t begin = 0; begin + context < tokens.size(); begin++) {
    if (std::equal(end.begin(), end.end(), tokens.begin() + static_cast<int64_t>(begin))) {
      scores[static_cast<size_t>(tokens[begin + context])] = -INFINITY;
    }
  }
}

void forbid_tokens(std::span<double> scores, std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) scores[static_cast<size_t>(token)] = -INFINITY;
}

void force_token(std::span<double> scores, int32_t token) {
  std::fill(scores.begin(), scores.end(), -INFINITY);
  scores[static_cast<size_t>(token)] = 0;
}

void process_logits(std::span<double> scores, const History& history,
                    const SamplingOptions& options, std::span<int32_t> counts) {
  const SamplingOptions& o = options;
  const size_t place = history.generated().size();
  add_logit_bias(scores, o.logit_bias);
  if (o.repetition_penalty != 1) {
    penalize_repetition(scores, history.tokens, o.repetition_penalty, counts);
  }
  if (o.no_repeat_ngram_size > 0) {
    forbid_repeated_ngrams(scores, history.tokens, o.no_repeat_ngram_size);
  }
  if (place < o.force_first.size()) force_token(scores, o.force_first[place]);
  forbid_tokens(scores, o.forbid);
  if (place == 0) forbid_tokens(scores, o.forbid_first);
  if (o.presence_penalty != 0 || o.frequency_penalty != 0) {
    penalize_presence_and_frequency(scores, history.generated(), o.presence_penalty,
                                    o.frequency_penalty, counts);
  }
}

}  // namespace lockstep
