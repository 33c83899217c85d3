#include "inference/sampling_filters.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace lockstep {
namespace {

void normalize(std::vector<Candidate>& kept) {
  double sum = 0;
  for (const Candidate& candidate : kept) sum += candidate.probability;
  for (Candidate& candidate : kept) candidate.probability /= sum;
}

// Moves candidates to the end of the range, those that `comes_later` than no other first, until
// `enough(candidate)`, and returns where they begin; the first to come stands last. By a heap,
// because few of a large vocabulary survive as a rule.
template <class ComesLater, class Enough>
std::vector<Candidate>::iterator take(std::vector<Candidate>& from, const ComesLater& comes_later,
                                      const Enough& enough) {
  auto begin = from.end();
  std::make_heap(from.begin(), from.end(), comes_later);
  while (begin != from.begin()) {
    std::pop_heap(from.begin(), begin, comes_later);
    if (enough(*--begin)) break;
  }
  return begin;
}

double surprise(double probability) { return -std::log(probability); }

}  // namespace

void keep_top_k(std::span<const double> scores, int64_t k, std::vector<Candidate>& kept,
                std::vector<double>& scratch) {
  double threshold = -INFINITY;
  if (k > 0 && k < static_cast<int64_t>(scores.size())) {
    scratch.assign(scores.begin(), scores.end());
    std::nth_element(scratch.begin(), scratch.begin() + (k - 1), scratch.end(), std::greater<>());
    threshold = scratch[static_cast<size_t>(k - 1)];
  }
  kept.clear();
  for (size_t i = 0; i < scores.size(); i++) {
    if (scores[i] >= threshold && scores[i] > -INFINITY) {
      kept.push_back({static_cast<int32_t>(i), 0});
    }
  }
}

void softmax(std::vector<Candidate>& kept, std::span<const double> scores, double temperature) {
  const auto score = [&](const Candidate& c) { return scores[static_cast<size_t>(c.token)]; };
  double largest = -INFINITY;
  for (const Candidate& candidate : kept) largest = std::max(largest, score(candidate));
  for (Candidate& candidate : kept) {
    candidate.probability = std::exp((score(candidate) - largest) / temperature);
  }
  normalize(kept);
}

void keep_top_p(std::vector<Candidate>& kept, double p) {
  const auto less_likely = [](const Candidate& a, const Candidate& b) {
    return a.probability < b.probability || (a.probability == b.probability && a.token > b.token);
  };
  double sum = 0;
  const auto enough = [&](const Candidate& c) { return (sum += c.probability) >= p; };
  const auto begin = take(kept, less_likely, enough);
  kept.erase(kept.begin(), begin);
  std::reverse(kept.begin(), kept.end());
  normalize(kept);
}

void keep_min_p(std::vector<Candidate>& kept, double ratio) {
  double likeliest = 0;
  for (const Candidate& candidate : kept) likeliest = std::max(likeliest, candidate.probability);
  std::erase_if(kept, [&](const Candidate& c) { return c.probability < ratio * likeliest; });
  normalize(kept);
}

void keep_typical(std::vector<Candidate>& kept, double p, std::vector<Candidate>& scratch) {
  double entropy = 0;
  for (const Candidate& candidate : kept) {
    const double probability = candidate.probability;
    if (probability > 0) entropy += probability * surprise(probability);
  }
  const auto distance = [&](double probability) {
    return std::abs(surprise(probability) - entropy);
  };
  // By distance; equal probabilities have equal distances, so the order of ids decides nothing.
  const auto less_typical = [&](const Candidate& a, const Candidate& b) {
    return distance(a.probability) > distance(b.probability);
  };
  scratch = kept;
  double sum = 0;
  const auto enough = [&](const Candidate& c) { return (sum += c.probability) >= p; };
  const double furthest = distance(take(scratch, less_typical, enough)->probability);
  std::erase_if(kept, [&](const Candidate& c) { return distance(c.probability) > furthest; });
  normalize(kept);
}

}  // namespace lockstep
