#include "inference/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/check.h"
#include "core/random.h"

namespace lockstep {
namespace {

// Keeps these random numbers apart from others of the same seed.
constexpr uint64_t kKey = 0x53414d504c494e47;

// Uniform in [0, 1), a multiple of 2^-53.
double draw(uint64_t seed, uint64_t stream_index, int64_t position) {
  const auto place = static_cast<uint64_t>(position);
  const PhiloxCounter random =
      philox({static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32),
              static_cast<uint32_t>(stream_index), static_cast<uint32_t>(stream_index >> 32)},
             philox_key(seed ^ kKey));
  return std::ldexp(static_cast<double>(uint64_t{random[0]} << 21 | random[1] >> 11), -53);
}

int32_t largest(std::span<const float> logits) {
  CHECK(!logits.empty());
  size_t best = 0;
  for (size_t i = 0; i < logits.size(); i++) {
    if (!(logits[i] < INFINITY)) {
      throw DataError(
          "the model's logit of token {} is {}: its weights are damaged or its training diverged",
          i, logits[i]);
    }
    if (logits[i] > logits[best]) best = i;
  }
  if (logits[best] == -INFINITY) throw DataError("the model gives no token a probability");
  return static_cast<int32_t>(best);
}

// Ids of the k largest logits and of those that equal the k-th, ascending.
std::vector<Candidate> top_k(std::span<const float> logits, int64_t k) {
  float threshold = -INFINITY;
  if (k > 0 && k < static_cast<int64_t>(logits.size())) {
    std::vector<float> sorted(logits.begin(), logits.end());
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
    threshold = sorted[static_cast<size_t>(k - 1)];
  }
  std::vector<Candidate> kept;
  for (size_t i = 0; i < logits.size(); i++) {
    if (logits[i] >= threshold && logits[i] > -INFINITY) {
      kept.push_back({static_cast<int32_t>(i), 0});
    }
  }
  return kept;
}

void normalize(std::vector<Candidate>& kept) {
  double sum = 0;
  for (const Candidate& candidate : kept) sum += candidate.probability;
  for (Candidate& candidate : kept) candidate.probability /= sum;
}

// The likeliest candidates until their probabilities sum up to p.
std::vector<Candidate> top_p(std::vector<Candidate> all, double p) {
  const auto less_likely = [](const Candidate& a, const Candidate& b) {
    return a.probability < b.probability || (a.probability == b.probability && a.token > b.token);
  };
  // A heap, because few of a large vocabulary survive as a rule.
  std::make_heap(all.begin(), all.end(), less_likely);
  std::vector<Candidate> kept;
  for (double sum = 0; sum < p && !all.empty(); all.pop_back()) {
    std::pop_heap(all.begin(), all.end(), less_likely);
    kept.push_back(all.back());
    sum += all.back().probability;
  }
  return kept;
}

}  // namespace

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  const int32_t best = largest(logits);
  if (options.greedy || options.temperature == 0) return {{best, 1}};
  std::vector<Candidate> kept = top_k(logits, options.top_k);
  const double maximum = static_cast<double>(logits[static_cast<size_t>(best)]);
  for (Candidate& candidate : kept) {
    const double logit = static_cast<double>(logits[static_cast<size_t>(candidate.token)]);
    candidate.probability = std::exp((logit - maximum) / options.temperature);
  }
  normalize(kept);
  if (options.top_p < 1) {
    kept = top_p(std::move(kept), options.top_p);
    normalize(kept);
  }
  return kept;
}

int32_t sample(std::span<const float> logits, const SamplingOptions& options, uint64_t stream_index,
               int64_t position) {
  const std::vector<Candidate> kept = candidates(logits, options);
  const double place = draw(options.seed, stream_index, position);
  double sum = 0;
  for (const Candidate& candidate : kept) {
    sum += candidate.probability;
    if (place < sum) return candidate.token;
  }
  // The rounded sum of all may fall short of 1: the last that can come at all.
  const auto last = std::find_if(kept.rbegin(), kept.rend(),
                                 [](const Candidate& c) { return c.probability > 0; });
  return last->token;
}

void validate(const SamplingOptions& options) {
  if (!(options.temperature >= 0 && options.temperature < INFINITY)) {
    throw UsageError("--temperature is {}; it must be 0 (greedy) or more", options.temperature);
  }
  if (options.top_k < 0) {
    throw UsageError("--top-k is {}; it must be 0 (all tokens) or more", options.top_k);
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    throw UsageError("--top-p is {}; it must be above 0 and at most 1", options.top_p);
  }
  if (options.max_tokens < 1) {
    throw UsageError("--max-tokens is {}; it must be at least 1", options.max_tokens);
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) throw UsageError("--stop is empty: every text would end at once");
  }
}

}  // namespace lockstep
