#include "inference/sampling.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/random.h"

namespace lockstep {
void check_logits(std::span<const float> logits, std::string_view model) {
  CHECK(!logits.empty());
  bool any = false;
  for (size_t i = 0; i < logits.size(); i++) {
    if (!(logits[i] < INFINITY)) {
      throw DataError(
          "{}'s logit of token {} is {}: its weights are damaged or its training diverged", model,
          i, logits[i]);
    }
    any = any || logits[i] > -INFINITY;
  }
  if (!any) throw DataError("{} gives no token a probability", model);
}

double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

std::span<const Candidate> candidates_or_none(std::span<const float> logits, const History& history,
                                              const SamplingOptions& options,
                                              SamplingBuffers& buffers, std::string_view model) {
  check_logits(logits, model);
  std::vector<double>& scores = buffers.scores;
  std::vector<Candidate>& kept = buffers.candidates;
  scores.assign(logits.begin(), logits.end());
  buffers.counts.resize(logits.size());
  process_logits(scores, history, options, buffers.counts);
  const auto best = std::max_element(scores.begin(), scores.end());
  if (*best == -INFINITY) return {};
  if (options.greedy || options.temperature == 0) {
    kept.assign({{static_cast<int32_t>(best - scores.begin()), 1}});
    return kept;
  }
  keep_top_k(scores, options.top_k, kept, buffers.sorted);
  softmax(kept, scores, options.temperature);
  if (options.top_p < 1) keep_top_p(kept, options.top_p);
  if (options.min_p > 0) keep_min_p(kept, options.min_p);
  if (options.typical_p < 1) keep_typical(kept, options.typical_p, buffers.by_typicality);
  return kept;
}

std::span<const Candidate> candidates(std::span<const float> logits, const History& history,
                                      const SamplingOptions& options, SamplingBuffers& buffers) {
  const auto kept = candidates_or_none(logits, history, options, buffers);
  if (!kept.empty()) return kept;
  throw UsageError(
      "no token is left to choose: --forbid, --forbid-first and --no-repeat-ngram-size rule out "
      "all {} of them",
      logits.size());
}

double random_number(Purpose purpose, uint64_t seed, uint64_t stream_index, uint64_t place) {
  // Keep these random numbers apart from others of the same seed.
  constexpr uint64_t kKeys[] = {0x53414d504c494e47, 0x4452414654494e47, 0x414343455054494e};
  const PhiloxCounter random =
      philox({static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32),
              static_cast<uint32_t>(stream_index), static_cast<uint32_t>(stream_index >> 32)},
             philox_key(seed ^ kKeys[static_cast<size_t>(purpose)]));
  return std::ldexp(static_cast<double>(uint64_t{random[0]} << 21 | random[1] >> 11), -53);
}

int32_t pick(std::span<const Candidate> candidates, double at) {
  double sum = 0;
  for (const Candidate& candidate : candidates) {
    sum += candidate.probability;
    if (at < sum) return candidate.token;
  }
  // The rounded sum of all may fall short of 1: the last that can come at all.
  const auto last = std::find_if(candidates.rbegin(), candidates.rend(),
                                 [](const Candidate& c) { return c.probability > 0; });
  return last->token;
}

int32_t sample(std::span<const float> logits, const History& history,
               const SamplingOptions& options, uint64_t stream_index, SamplingBuffers& buffers) {
  return pick(candidates(logits, history, options, buffers),
              random_number(Purpose::choice, options.seed, stream_index, history.tokens.size()));
}

PlaceLogprobs logprobs(std::span<const float> logits, int32_t token, int64_t count,
                       int64_t vocab_size) {
  const double log_sum = log_sum_exp(logits);
  const auto of = [&](int32_t id) -> TokenLogprob {
    return {id, static_cast<double>(logits[static_cast<size_t>(id)]) - log_sum};
  };
  const auto likelier = [](const TokenLogprob& a, const TokenLogprob& b) {
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token);
  };
  PlaceLogprobs result{of(token), {}};
  // A heap of the likeliest so far, the least likely of them on top.
  std::vector<TokenLogprob>& top = result.top;
  const auto most = static_cast<size_t>(std::min(count, vocab_size));
  for (int32_t id = 0; most > 0 && id < vocab_size; id++) {
    if (top.size() == most && !likelier(of(id), top.front())) continue;
    if (top.size() == most) {
      std::pop_heap(top.begin(), top.end(), likelier);
      top.pop_back();
    }
    top.push_back(of(id));
    std::push_heap(top.begin(), top.end(), likelier);
  }
  std::sort_heap(top.begin(), top.end(), likelier);
  return result;
}

}  // namespace lockstep
