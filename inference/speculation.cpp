#include "inference/speculation.h"

#include <algorithm>

namespace lockstep {
namespace {

double probability(std::span<const Candidate> distribution, int32_t token) {
  const auto found = std::find_if(distribution.begin(), distribution.end(),
                                  [=](const Candidate& c) { return c.token == token; });
  return found == distribution.end() ? 0 : found->probability;
}

}  // namespace

Verdict verify(const Proposal& proposal, std::span<const Candidate> p, double acceptance,
               double choice, SamplingBuffers& buffers) {
  const std::vector<Candidate>& q = proposal.distribution;
  if (acceptance * probability(q, proposal.token) < probability(p, proposal.token)) {
    return {true, proposal.token};
  }
  std::vector<double>& of_draft = buffers.scores;  // q by id
  const auto of_larger_id = [](const Candidate& a, const Candidate& b) {
    return a.token < b.token;
  };
  const auto size = std::max(std::max_element(p.begin(), p.end(), of_larger_id)->token,
                             std::max_element(q.begin(), q.end(), of_larger_id)->token) +
                    1;
  of_draft.assign(static_cast<size_t>(size), 0);
  for (const Candidate& c : q) of_draft[static_cast<size_t>(c.token)] = c.probability;
  std::vector<Candidate>& residual = buffers.residual;
  residual.clear();
  double sum = 0;
  for (const Candidate& c : p) {
    const double more = c.probability - of_draft[static_cast<size_t>(c.token)];
    if (more <= 0) continue;
    residual.push_back({c.token, more});
    sum += more;
  }
  // p and q differ by less than their rounding: the proposal was as good as any.
  if (residual.empty()) return {false, pick(p, choice)};
  return {false, pick(residual, choice * sum)};
}

NextTokens next_tokens(std::span<const float> logits, size_t known, const History& history,
                       std::span<const Proposal> proposals, const SamplingOptions& options,
                       uint64_t stream_index, std::optional<int32_t> end,
                       SamplingBuffers& buffers) {
  const size_t vocab_size = logits.size() / (proposals.size() + 1);
  size_t place = history.tokens.size() - proposals.size();
  NextTokens next;
  // Behind an accepted token the text may have ended, by a stop text: that the options leave
  // nothing there is an error only when it is asked for again.
  const auto of_place = [&](const History& before) {
    return next.accepted > 0 ? candidates_or_none(logits.first(known), before, options, buffers)
                             : candidates(logits.first(known), before, options, buffers);
  };
  for (const Proposal& proposal : proposals) {
    const History before{history.tokens.first(place), history.prompt_size};
    const auto p = of_place(before);
    if (p.empty()) return next;
    const auto number = [&](Purpose purpose) {
      return random_number(purpose, options.seed, stream_index, place);
    };
    const Verdict verdict =
        verify(proposal, p, number(Purpose::acceptance), number(Purpose::choice), buffers);
    next.tokens.push_back(verdict.token);
    next.rejected = !verdict.accepted;
    if (next.rejected) return next;
    next.accepted++;
    if (verdict.token == end) return next;
    logits = logits.subspan(vocab_size);
    place++;
  }
  const auto p = of_place(history);
  if (!p.empty()) {
    next.tokens.push_back(
        pick(p, random_number(Purpose::choice, options.seed, stream_index, place)));
  }
  return next;
}

int64_t DraftLength::next() const {
  constexpr double kWorthIt = 0.3;
  if (pause_ > 0) return 0;
  int64_t count = 1;
  for (double reached = rate() * rate(); reached >= kWorthIt && count < kMost; reached *= rate()) {
    count++;
  }
  return count;
}

void DraftLength::record(int64_t accepted, bool rejected) {
  constexpr double kKept = 15.0 / 16, kSeldom = 0.25;
  if (pause_ > 0) pause_--;
  const auto place = [this](double one) {
    decided_ = kKept * decided_ + 1;
    accepted_ = kKept * accepted_ + one;
  };
  for (int64_t n = 0; n < accepted; n++) place(1);
  if (!rejected) return;
  place(0);
  if (rate() < kSeldom) pause_ = kPause;
}

}  // namespace lockstep
