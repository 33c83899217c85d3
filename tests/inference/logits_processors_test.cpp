#include "inference/logits_processors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace lockstep {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr double kBanned = -INFINITY;
using Scores = std::vector<double>;
using Tokens = std::vector<int32_t>;

TEST(LogitsProcessors, BiasIsAdded) {
  Scores scores = {1, 2, kBanned};
  add_logit_bias(scores, std::vector<TokenBias>{{0, -3}, {2, 5}});
  EXPECT_THAT(scores, ElementsAre(-2, 2, kBanned));
}

TEST(LogitsProcessors, RepetitionCountsOnceAndPushesTowardsUnlikely) {
  Tokens counts(5);
  for (int round = 0; round < 2; round++) {  // the counts are left as they were
    Scores scores = {4, -4, 0, 4, kBanned};
    penalize_repetition(scores, Tokens{0, 1, 0, 0, 2, 4}, 2, counts);
    EXPECT_THAT(scores, ElementsAre(2, -8, 0, 4, kBanned));
    EXPECT_THAT(counts, Each(0));
  }
}

TEST(LogitsProcessors, PresenceAndFrequency) {
  Tokens counts(4);
  for (int round = 0; round < 2; round++) {
    Scores scores = {1, 1, 1, kBanned};
    penalize_presence_and_frequency(scores, Tokens{0, 2, 0, 0, 3}, 0.5, 0.25, counts);
    EXPECT_THAT(scores, ElementsAre(-0.25, 1, 0.25, kBanned));
    EXPECT_THAT(counts, Each(0));
  }
}

TEST(LogitsProcessors, NGramsDoNotComeTwice) {
  const auto banned = [](const Tokens& tokens, int64_t size) {
    Scores scores(8);
    forbid_repeated_ngrams(scores, tokens, size);
    Tokens ids;
    for (int32_t id = 0; id < 8; id++) {
      if (scores[static_cast<size_t>(id)] == kBanned) ids.push_back(id);
    }
    return ids;
  };
  EXPECT_THAT(banned({3, 5, 3}, 1), ElementsAre(3, 5));
  EXPECT_THAT(banned({3, 5, 4, 3, 6, 3}, 2), ElementsAre(5, 6));
  EXPECT_THAT(banned({1, 2, 3, 1, 2, 4, 1, 2}, 3), ElementsAre(3, 4));
  EXPECT_THAT(banned({1, 1}, 2), ElementsAre(1));  // runs may overlap
  EXPECT_THAT(banned({1, 2, 1}, 4), ElementsAre());
  EXPECT_THAT(banned({1, 2, 3}, 3), ElementsAre());  // the only run is not complete
  EXPECT_THAT(banned({}, 1), ElementsAre());
}

TEST(LogitsProcessors, ForcedTokenHasAllProbability) {
  Scores scores = {1, kBanned, 3};
  force_token(scores, 1);
  EXPECT_THAT(scores, ElementsAre(kBanned, 0, kBanned));
}

struct Chain : ::testing::Test {
  SamplingOptions options;
  // After a prompt of `prompt_size` of these tokens, of scores that are all 8.
  Scores processed(const Tokens& tokens, size_t prompt_size) const {
    Scores scores(4, 8.0);
    Tokens counts(4);
    process_logits(scores, {tokens, prompt_size}, options, counts);
    return scores;
  }
};

TEST_F(Chain, DoesNothingUnasked) { EXPECT_THAT(processed({0, 1, 1}, 1), Each(8)); }

// Of two that do not commute the order shows: (8 - 4) / 2 - 1, not 8 / 2 - 4 - 1 or (8 - 5) / 2.
TEST_F(Chain, BiasThenRepetitionThenPresence) {
  options.logit_bias = {{1, -4}};
  options.repetition_penalty = 2;
  options.presence_penalty = 1;
  EXPECT_THAT(processed({0, 1}, 1), ElementsAre(4, 1, 8, 8));
}

TEST_F(Chain, PenaltiesOfWhatIsGeneratedSkipThePrompt) {
  options.frequency_penalty = 0.5;
  EXPECT_THAT(processed({0, 0, 1, 1, 0}, 2), ElementsAre(7.5, 7, 8, 8));
}

TEST_F(Chain, ForcedTokensComeOneAfterTheOtherWhateverElseIsBanned) {
  options.no_repeat_ngram_size = 1;
  options.force_first = {1, 1, 2};
  const double no = kBanned;
  EXPECT_THAT(processed({1}, 1), ElementsAre(no, 0, no, no));
  EXPECT_THAT(processed({1, 1}, 1), ElementsAre(no, 0, no, no));
  EXPECT_THAT(processed({1, 1, 1}, 1), ElementsAre(no, no, 0, no));
  EXPECT_THAT(processed({1, 1, 1, 2}, 1), ElementsAre(8, no, no, 8));
}

TEST_F(Chain, ForbiddenFirstTokensAreForbiddenFirstOnly) {
  options.forbid = {3};
  options.forbid_first = {0, 2};
  EXPECT_THAT(processed({1}, 1), ElementsAre(kBanned, 8, kBanned, kBanned));
  EXPECT_THAT(processed({1, 1}, 1), ElementsAre(8, 8, 8, kBanned));
}

}  // namespace
}  // namespace lockstep
