#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "inference/sampling.h"

// Speculative decoding: a draft proposes the next tokens, one pass of the model computes what it
// would have chosen in the place of each and after the last, and those proposals stay that leave
// the distribution of the text as it is without a draft (Leviathan, Kalman and Matias, "Fast
// inference from transformers via speculative decoding", 2023; Chen et al., "Accelerating large
// language model decoding with speculative sampling", 2023).
namespace lockstep {

// A token that a draft proposes, and the distribution that it was drawn from: one candidate where
// there was nothing to draw.
struct Proposal {
  int32_t token;
  std::vector<Candidate> distribution;
};

struct Verdict {
  bool accepted;
  int32_t token;  // the proposal, or what comes in its place
};

// Of token x, drawn from q, where the model and the options give p: accepted with probability
// min(1, p(x) / q(x)), else replaced by a token of the distribution max(0, p - q) / sum of the
// same. So token t comes with probability
//
//   q(t) min(1, p(t) / q(t)) + (1 - sum_x min(p(x), q(x))) max(0, p(t) - q(t)) / sum_x max(0, p -
//   q) = min(p(t), q(t)) + max(0, p(t) - q(t)) = p(t),
//
// whatever q is. `acceptance` and `choice` are random numbers in [0, 1), independent of each other
// and of the draw of x. Overwrites scores and residual of the buffers; p may be their candidates.
Verdict verify(const Proposal& proposal, std::span<const Candidate> p, double acceptance,
               double choice, SamplingBuffers& buffers);

// What a pass brings.
struct NextTokens {
  std::vector<int32_t> tokens;  // at least one
  int64_t accepted = 0;         // so many of the first of them are proposals
  bool rejected = false;        // the last of them came in the place of a proposal
};

// The next tokens of a sequence whose `history` ends with the proposals, if there are any: those
// that are accepted, and one more, unless the last of them is `end` or the options leave no token
// behind it. `logits` (proposals + 1, V): of what comes in the place of each proposal and after the
// last; the ids from `known` on are never chosen. Random numbers are a function of options.seed,
// stream_index and a token's place. Without proposals it is `sample`. Throws as candidates().
NextTokens next_tokens(std::span<const float> logits, size_t known, const History& history,
                       std::span<const Proposal> proposals, const SamplingOptions& options,
                       uint64_t stream_index, std::optional<int32_t> end, SamplingBuffers& buffers);

// How many tokens a draft proposes for a request, by what became of the proposals before. With a
// rate of acceptance a, the n-th proposal of a pass becomes a token with probability a^n. One costs
// about 0.15 of a pass (a pass of a small draft, a row more of the model's), and is worth it while
// a^n is at least 0.3: for a from 0.05 to 0.98 that gives at least 90 % of the tokens a time,
// (1 - a^(n+1)) / (1 - a) / (1 + 0.15 n) (Leviathan et al., theorem 3.8), that the best n gives. A
// draft that is seldom right proposes nothing for a while, then one token, to see whether it has
// become better.
class DraftLength {
 public:
  static constexpr int64_t kMost = 15, kPause = 16;  // kPause: passes
  int64_t next() const;                              // from 0 to kMost
  // After each pass. Of its proposals those count that were looked at: up to the first rejected.
  void record(int64_t accepted, bool rejected);

 private:
  double rate() const { return accepted_ / decided_; }
  // Of the last places, about 16, older ones with less weight; at first a guess.
  double decided_ = 4, accepted_ = 3;
  int64_t pause_ = 0;  // passes
};

}  // namespace lockstep
