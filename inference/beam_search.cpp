#include "inference/beam_search.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/thread_pool.h"
#include "inference/logits_processors.h"
#include "inference/sampling.h"

namespace lockstep {

BeamSearch::BeamSearch(const SamplingOptions& options, std::span<const int32_t> prompt,
                       int64_t most, Ends ends)
    : options_(options),
      o_(options.beams),
      prompt_(prompt.begin(), prompt.end()),
      most_(most),
      ends_(std::move(ends)),
      group_size_(static_cast<size_t>(o_.num_beams / o_.num_groups)),
      beams_(1),
      groups_(static_cast<size_t>(o_.num_groups)) {
  CHECK(most >= 1);
  for (Group& group : groups_) group.beams = {0};
}

// The log-probabilities of a beam's next token, as the options change them.
void BeamSearch::process(const Beam& beam, std::span<const float> logits,
                         std::span<double> scores) {
  check_logits(logits);
  const double log_sum = log_sum_exp(logits);
  for (size_t v = 0; v < scores.size(); v++) scores[v] = logits[v] - log_sum;
  std::vector<int32_t> tokens = prompt_, counts(scores.size());
  tokens.insert(tokens.end(), beam.tokens.begin(), beam.tokens.end());
  process_logits(scores, {tokens, prompt_.size()}, options_, counts);
}

void BeamSearch::step(std::span<const float> logits, size_t known) {
  const size_t all = logits.size() / beams_.size();
  scores_.resize(beams_.size() * known);
  parallel_for(static_cast<int64_t>(beams_.size()), 1, [&](int64_t n, int64_t) {
    process(beams_[n], logits.subspan(n * all, all), std::span(scores_).subspan(n * known, known));
  });
  chosen_counts_.assign(known, 0);
  std::vector<Beam> next;
  for (Group& group : groups_) {
    if (!group.beams.empty()) step_group(group, known, next);
  }
  beams_ = std::move(next);
}

// The best 2 * group_size_, best first; among equals the first beam, then the lowest id.
std::vector<BeamSearch::Continuation> BeamSearch::best_continuations(const Group& group,
                                                                     size_t known) const {
  const auto better = [](const Continuation& a, const Continuation& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
  };
  std::vector<Continuation> best;  // a heap whose first is the worst
  for (const size_t n : group.beams) {
    for (size_t v = 0; v < known; v++) {
      const double penalty = o_.diversity_penalty * chosen_counts_[v];
      const double score = beams_[n].score + scores_[n * known + v] - penalty;
      if (score == -INFINITY) continue;
      const Continuation continuation{score, n, static_cast<int32_t>(v)};
      if (best.size() == 2 * group_size_) {
        if (!better(continuation, best.front())) continue;
        std::pop_heap(best.begin(), best.end(), better);
        best.pop_back();
      }
      best.push_back(continuation);
      std::push_heap(best.begin(), best.end(), better);
    }
  }
  std::sort_heap(best.begin(), best.end(), better);
  return best;
}

void BeamSearch::step_group(Group& group, size_t known, std::vector<Beam>& next) {
  const std::vector<Continuation> best = best_continuations(group, known);
  if (best.empty()) {
    throw UsageError("every token is ruled out by --forbid, --no-repeat-ngram-size or others");
  }
  const size_t first = next.size();
  size_t chosen = 0;  // that go on, or would if there were room: these count for other groups
  for (size_t rank = 0; rank < best.size(); rank++) {
    const Continuation& c = best[rank];
    const Beam& beam = beams_[c.beam];
    const bool is_end = ends_(beam, c.token);
    const bool is_full = static_cast<int64_t>(beam.tokens.size()) + 1 == most_;
    if (!is_end && chosen < group_size_) {
      chosen++;
      chosen_counts_[c.token]++;
      if (!is_full) {
        next.push_back({beam.tokens, c.score, c.beam});
        next.back().tokens.push_back(c.token);
      }
    }
    if ((is_end || is_full) && rank < group_size_) end(group, beam, c);
  }
  group.beams.clear();
  for (size_t n = first; n < next.size(); n++) group.beams.push_back(n);
  // Hugging Face's diverse search looks at the best continuation, whether it ended or not.
  const bool diverse = groups_.size() > 1;
  if (next.size() == first ||
      is_over(group, diverse ? best.front().score : next[first].score, next[first].tokens.size())) {
    group.beams.clear();
    next.resize(first);
  }
}

// Adds the continuation to the ended texts, if it is better than the worst of them.
void BeamSearch::end(Group& group, const Beam& beam, const Continuation& continuation) const {
  EndedBeam ended{beam.tokens, 0};
  ended.tokens.push_back(continuation.token);
  ended.score =
      continuation.score / std::pow(static_cast<double>(ended.tokens.size()), o_.length_penalty);
  const auto place =
      std::upper_bound(group.ended.begin(), group.ended.end(), ended,
                       [](const EndedBeam& a, const EndedBeam& b) { return a.score > b.score; });
  group.ended.insert(place, std::move(ended));
  if (group.ended.size() > group_size_) group.ended.pop_back();
}

// Whether a text that has this score with so many tokens can get among the ended ones.
bool BeamSearch::is_over(const Group& group, double score, size_t tokens) const {
  if (group.ended.size() < group_size_) return false;
  if (o_.early_stopping == EarlyStopping::yes) return true;
  const bool at_most = o_.early_stopping == EarlyStopping::never && o_.length_penalty > 0;
  const auto length = static_cast<double>(at_most ? most_ : static_cast<int64_t>(tokens));
  return score / std::pow(length, o_.length_penalty) <= group.ended.back().score;
}

std::vector<EndedBeam> BeamSearch::best() const {
  std::vector<EndedBeam> all;
  for (const Group& group : groups_) {
    all.insert(all.end(), group.ended.begin(), group.ended.end());
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const EndedBeam& a, const EndedBeam& b) { return a.score > b.score; });
  if (all.size() > static_cast<size_t>(o_.num_return_sequences)) {
    all.resize(static_cast<size_t>(o_.num_return_sequences));
  }
  return all;
}

}  // namespace lockstep
