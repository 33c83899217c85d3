#include "inference/speculation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <random>

#include "inference/prompt_lookup.h"
#include "tests/inference/chi_square.h"

namespace lockstep {
namespace {

using testing::Counts;
using ::testing::ElementsAre;
using testing::from_one_distribution;
using ::testing::IsEmpty;

using Distribution = std::vector<Candidate>;

// A token of one of these, after which the other numbers of the place decide.
using Rule = std::function<Verdict(const Proposal&, const Distribution& p, double acceptance,
                                   double choice)>;

Verdict right(const Proposal& proposal, const Distribution& p, double acceptance, double choice) {
  SamplingBuffers buffers;
  return verify(proposal, p, acceptance, choice, buffers);
}

double of(const Distribution& distribution, int32_t token) {
  for (const Candidate& c : distribution) {
    if (c.token == token) return c.probability;
  }
  return 0;
}

// Texts of three tokens, each of which depends on the one before it.
struct Texts {
  using Text = std::array<int32_t, 3>;
  static constexpr int kDraws = 20000;
  std::mt19937_64 random{11};
  std::vector<Distribution> model, draft;  // by the token before

  explicit Texts(double likeness) {
    for (int32_t before = 0; before < 5; before++) {
      Distribution p, q;
      double sum_p = 0, sum_q = 0;
      for (const int32_t token : {3, 0, 4, 1, 2}) {  // by likelihood, by id: any order will do
        p.push_back({token, uniform()});
        q.push_back({token, likeness * p.back().probability + (1 - likeness) * uniform()});
        if (token == before) q.back().probability = 0;
        if (token == (before + 1) % 5) p.back().probability = 0;
        sum_p += p.back().probability, sum_q += q.back().probability;
      }
      for (Candidate& c : p) c.probability /= sum_p;
      for (Candidate& c : q) c.probability /= sum_q;
      std::reverse(q.begin(), q.end());
      model.push_back(p), draft.push_back(q);
    }
  }
  double uniform() { return std::ldexp(static_cast<double>(random() >> 11), -53); }

  Counts<Text> direct() {
    Counts<Text> counts;
    for (int draw = 0; draw < kDraws; draw++) {
      Text text;
      for (int32_t before = 0; int32_t & token : text) {
        before = token = pick(model[before], uniform());
      }
      counts[text]++;
    }
    return counts;
  }

  // By drafts of two tokens.
  Counts<Text> speculative(const Rule& rule) {
    Counts<Text> counts;
    for (int draw = 0; draw < kDraws; draw++) {
      std::vector<int32_t> text = {0};
      while (text.size() < 4) {
        std::vector<Proposal> proposals;
        for (int32_t n = 0, before = text.back(); n < 2; n++) {
          before = pick(draft[before], uniform());
          const int32_t last = n == 0 ? text.back() : proposals.back().token;
          proposals.push_back({before, draft[last]});
        }
        bool rejected = false;
        for (const Proposal& proposal : proposals) {
          const Verdict verdict = rule(proposal, model[text.back()], uniform(), uniform());
          text.push_back(verdict.token);
          rejected = !verdict.accepted;
          if (rejected) break;
        }
        if (!rejected) text.push_back(pick(model[text.back()], uniform()));
      }
      counts[{text[1], text[2], text[3]}]++;
    }
    return counts;
  }
};

TEST(Speculation, LeavesTheDistributionOfTheModel) {
  for (const double likeness : {0.0, 0.5, 0.95}) {
    Texts texts(likeness);
    const auto direct = texts.direct();
    EXPECT_TRUE(from_one_distribution(direct, texts.direct())) << likeness;
    EXPECT_TRUE(from_one_distribution(direct, texts.speculative(right))) << likeness;
  }
}

// The same test finds rules that are nearly right.
TEST(Speculation, OtherRulesDoNot) {
  const Rule likely = [](const Proposal& proposal, const Distribution& p, double, double choice) {
    if (of(p, proposal.token) > 0.5) return Verdict{true, proposal.token};
    return right(proposal, p, 1, choice);
  };
  const Rule at_least_as_likely = [](const Proposal& proposal, const Distribution& p, double,
                                     double choice) {
    const double ratio = of(p, proposal.token) / of(proposal.distribution, proposal.token);
    return ratio >= 1 ? Verdict{true, proposal.token} : Verdict{false, pick(p, choice)};
  };
  const Rule replaced_from_p = [](const Proposal& proposal, const Distribution& p,
                                  double acceptance, double choice) {
    const Verdict verdict = right(proposal, p, acceptance, choice);
    return verdict.accepted ? verdict : Verdict{false, pick(p, choice)};
  };
  const Rule always = [](const Proposal& proposal, const Distribution&, double, double) {
    return Verdict{true, proposal.token};
  };
  Texts texts(0.5);
  const auto direct = texts.direct();
  for (const Rule& wrong : {likely, at_least_as_likely, replaced_from_p, always}) {
    EXPECT_FALSE(from_one_distribution(direct, texts.speculative(wrong)));
  }
}

TEST(Speculation, AtTheEdges) {
  const auto decide = [](const Distribution& q, const Distribution& p, double acceptance,
                         double choice) {
    const Verdict verdict = right({q.front().token, q}, p, acceptance, choice);
    return std::pair(verdict.accepted, verdict.token);
  };
  const double almost_1 = 1 - 0x1p-53;
  // Greedy: both choose one token.
  EXPECT_EQ(decide({{3, 1}}, {{3, 1}}, almost_1, 0), std::pair(true, 3));
  EXPECT_EQ(decide({{3, 1}}, {{700, 1}}, 0, 0.5), std::pair(false, 700));
  EXPECT_EQ(decide({{700, 1}}, {{3, 1}}, 0, 0.5), std::pair(false, 3));
  // As likely or likelier: always.
  EXPECT_EQ(decide({{1, 0.5}, {2, 0.5}}, {{1, 0.5}, {2, 0.5}}, almost_1, 0), std::pair(true, 1));
  // Half as likely: in half of all cases; 2, of which the draft says too little, comes instead.
  const Distribution q = {{1, 0.5}, {2, 0.25}, {3, 0.25}}, p = {{3, 0.25}, {2, 0.5}, {1, 0.25}};
  EXPECT_EQ(decide(q, p, 0.49999, 0.3), std::pair(true, 1));
  for (const double choice : {0.0, 0.3, almost_1}) {
    EXPECT_EQ(decide(q, p, 0.5, choice), std::pair(false, 2));
  }
  // Nothing to draw: with the model's own probability.
  EXPECT_EQ(decide({{2, 1}}, p, 0.49999, 0), std::pair(true, 2));
  EXPECT_EQ(decide({{2, 1}}, p, 0.5, 0.49), std::pair(false, 3));
  EXPECT_EQ(decide({{2, 1}}, p, 0.5, 0.51), std::pair(false, 1));
  // Rounding leaves no residual.
  const Distribution rounded = {{1, 0.5 - 0x1p-54}, {2, 0.5}};
  EXPECT_EQ(decide({{1, 0.5}, {2, 0.5}}, rounded, almost_1, 0.7), std::pair(false, 2));
}

TEST(DraftLength, FollowsTheRateOfAcceptance) {
  DraftLength length;
  EXPECT_EQ(length.next(), 4);
  for (int pass = 0; pass < 20; pass++) length.record(length.next(), false);
  EXPECT_EQ(length.next(), DraftLength::kMost);
  for (int pass = 0; pass < 10; pass++) length.record(0, true);
  EXPECT_EQ(length.next(), 1);
  // What was not looked at does not count.
  const DraftLength before = length;
  length.record(0, false);
  EXPECT_EQ(length.next(), before.next());
}

TEST(DraftLength, PausesWhereADraftIsSeldomRight) {
  DraftLength length;
  for (int pass = 0; pass < 40; pass++) length.record(0, true);
  for (int64_t pass = 0; pass < DraftLength::kPause; pass++) {
    EXPECT_EQ(length.next(), 0) << pass;
    length.record(0, false);
  }
  for (int right = 0; right < 3; right++) {
    EXPECT_EQ(length.next(), 1);
    length.record(1, false);
  }
  length.record(0, true);
  EXPECT_EQ(length.next(), 0);
}

// What is promised in speculation.h, of a rate that has lasted.
TEST(DraftLength, IsNearTheBest) {
  for (double rate = 0.05; rate < 0.985; rate += 0.01) {
    DraftLength length;
    double share = 0;  // of proposals due to be accepted, so that they come evenly
    for (int place = 0; place < 400; place++) {
      share += rate;
      const bool accepted = share >= 1;
      if (accepted) share -= 1;
      length.record(accepted ? 1 : 0, !accepted);
    }
    const auto tokens_a_time = [&](int64_t n) {
      return (1 - std::pow(rate, n + 1)) / (1 - rate) / (1 + 0.15 * static_cast<double>(n));
    };
    double best = 0;
    for (int64_t n = 1; n <= DraftLength::kMost; n++) best = std::max(best, tokens_a_time(n));
    EXPECT_GT(tokens_a_time(length.next()), 0.9 * best) << rate;
  }
}

TEST(PromptLookup, ProposesWhatFollowedLast) {
  const auto look = [](std::vector<int32_t> tokens, int64_t count) {
    return prompt_lookup(tokens, count);
  };
  EXPECT_THAT(look({1, 2, 3, 4, 9, 1, 2}, 3), ElementsAre(3, 4, 9));
  EXPECT_THAT(look({1, 2, 3, 1, 2, 4, 1, 2}, 1), ElementsAre(4));           // the newest
  EXPECT_THAT(look({5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2}, 1), ElementsAre(3));  // the longest
  EXPECT_THAT(look({9, 5, 6, 1, 2, 3, 8, 5, 6, 1, 2, 4, 9, 5, 6, 1, 2}, 1),
              ElementsAre(4));                             // of 4 and 5 alike the newer
  EXPECT_THAT(look({1, 2, 3, 4, 2, 9, 2}, 3), IsEmpty());  // one token alone
  EXPECT_THAT(look({7, 1, 2, 1, 2}, 5), ElementsAre(1, 2, 1, 2, 1));
  EXPECT_THAT(look({7, 7, 7}, 4), ElementsAre(7, 7, 7, 7));
  EXPECT_THAT(look({7, 7}, 4), IsEmpty());
  EXPECT_THAT(look({7}, 4), IsEmpty());
  EXPECT_THAT(look({1, 2, 3, 1, 2}, 0), IsEmpty());
}

}  // namespace
}  // namespace lockstep
