#include "inference/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/file.h"
#include "tests/inference/golden.h"

namespace lockstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SamplingOptions options(double temperature, int64_t top_k, double top_p) {
  SamplingOptions o;
  o.temperature = temperature;
  o.top_k = top_k;
  o.top_p = top_p;
  return o;
}

// After a prompt of one token, in buffers that other calls have used.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  static SamplingBuffers buffers;
  const std::vector<int32_t> prompt = {0};
  const auto kept = lockstep::candidates(logits, {prompt, 1}, options, buffers);
  return {kept.begin(), kept.end()};
}

int32_t sample(std::span<const float> logits, const SamplingOptions& options, uint64_t stream_index,
               int64_t position) {
  static SamplingBuffers buffers;
  const std::vector<int32_t> prompt(static_cast<size_t>(position));
  return lockstep::sample(logits, {prompt, prompt.size()}, options, stream_index, buffers);
}

std::vector<int32_t> ids(const std::vector<Candidate>& candidates) {
  std::vector<int32_t> tokens;
  for (const Candidate& candidate : candidates) tokens.push_back(candidate.token);
  return tokens;
}

TEST(Candidates, AreThoseOfHuggingFace) {
  const auto cases =
      nlohmann::json::parse(read_file(std::string(LOCKSTEP_GOLDEN) + "/inference/sampling.json"));
  ASSERT_GT(cases.size(), 90u);
  for (const auto& golden : cases) {
    const std::vector<float> logits = golden.at("logits");
    auto kept = candidates(logits, testing::sampling_options(golden));
    if (golden.contains("top_p")) {
      EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end(), [](const auto& a, const auto& b) {
        return a.probability > b.probability;
      }));
    }
    std::sort(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.token < b.token; });
    ASSERT_EQ(ids(kept), golden.at("ids").get<std::vector<int32_t>>()) << golden.dump();
    for (size_t i = 0; i < kept.size(); i++) {
      // Theirs are the float64 softmax of scores rounded to float32: scores up to 134 are wrong by
      // 2^-18, probabilities by twice that, relatively.
      const double want = golden.at("probabilities")[i];
      EXPECT_NEAR(kept[i].probability, want, want * std::ldexp(1, -17)) << golden.dump();
    }
  }
}

TEST(Candidates, GreedyTakesTheLowestOfTheLargest) {
  const std::vector<float> logits = {1, 3, 2, 3, -kInfinity};
  SamplingOptions greedy;
  greedy.greedy = true;
  EXPECT_THAT(ids(candidates(logits, greedy)), ElementsAre(1));
  EXPECT_THAT(ids(candidates(logits, options(0, 0, 1))), ElementsAre(1));
  EXPECT_EQ(sample(logits, greedy, 5, 7), 1);
}

TEST(Candidates, AmongEqualsTopPTakesTheLowerId) {
  const std::vector<float> logits = {0, 1, 1, 1, 1};
  EXPECT_THAT(ids(candidates(logits, options(1, 0, 0.4))), ElementsAre(1, 2));
  // Exactly reached is enough, as there.
  EXPECT_THAT(ids(candidates(std::vector<float>(4), options(1, 0, 0.5))), ElementsAre(0, 1));
}

// The ends of each range, k beyond the vocabulary, and filters that would leave nothing.
TEST(Candidates, AtTheEndsOfTheRanges) {
  const std::vector<float> logits = {0, 2, 1, 2};
  const auto kept = [&](const auto& change) {
    SamplingOptions o;
    change(o);
    return ids(candidates(logits, o));
  };
  using O = SamplingOptions;
  EXPECT_THAT(kept([](O& o) { o.top_k = 1; }), ElementsAre(1, 3));  // equals stay together
  EXPECT_THAT(kept([](O& o) { o.top_k = 4; }), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept([](O& o) { o.top_k = int64_t{1} << 53; }), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept([](O& o) { o.top_p = 0; }), ElementsAre(1));
  EXPECT_THAT(kept([](O& o) { o.top_p = 1; }), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept([](O& o) { o.min_p = 0; }), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept([](O& o) { o.min_p = 1; }), ElementsAre(1, 3));
  // Surprises 0.95 (of two), 1.95, 2.95; entropy 1.24: the two likeliest are nearest.
  EXPECT_THAT(kept([](O& o) { o.typical_p = 1e-300; }), ElementsAre(1, 3));
  EXPECT_THAT(kept([](O& o) { o.typical_p = 1; }), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept([](O& o) { o.temperature = 0; }), ElementsAre(1));
  EXPECT_THAT(kept([](O& o) {
                o.top_k = 1;
                o.top_p = 0;
                o.min_p = 1;
                o.typical_p = 1e-300;
              }),
              ElementsAre(1));
}

// Where one token has nearly all probability, the tail may still be the more typical one.
TEST(Candidates, TypicalMayDropTheLikeliest) {
  std::vector<float> logits(101);
  logits[7] = 4;  // p = 0.353, surprise 1.04; the others 5.04 each; entropy 3.63
  SamplingOptions o;
  o.typical_p = 0.3;
  const auto kept = ids(candidates(logits, o));
  EXPECT_EQ(kept.size(), 100u);
  EXPECT_EQ(std::count(kept.begin(), kept.end(), 7), 0);
}

TEST(Candidates, SayWhenTheOptionsLeaveNone) {
  SamplingOptions o;
  o.forbid = {1, 2};
  o.no_repeat_ngram_size = 1;  // forbids the prompt's token, 0
  for (o.greedy = false;; o.greedy = true) {
    try {
      candidates(std::vector<float>{1, 2, 3}, o);
      FAIL();
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr("no token is left"));
    }
    EXPECT_THAT(ids(candidates(std::vector<float>{1, 2, 3, -9}, o)), ElementsAre(3));
    if (o.greedy) break;
  }
}

TEST(Candidates, NeverHoldAnImpossibleToken) {
  const std::vector<float> logits = {-kInfinity, 0, -kInfinity, 1};
  EXPECT_THAT(ids(candidates(logits, options(1, 0, 1))), ElementsAre(1, 3));
  EXPECT_THAT(ids(candidates(logits, options(1, 3, 1))), ElementsAre(1, 3));
  EXPECT_THAT(ids(candidates(logits, options(1, 0, 0.9999999))), ElementsAre(3, 1));
}

TEST(Candidates, SurviveExtremeTemperatures) {
  const std::vector<float> logits = {3e38f, -3e38f, 2.9e38f};
  for (const double temperature : {1e-30, 1e-3, 1.0, 1e3, 1e300}) {
    double sum = 0;
    for (const Candidate& c : candidates(logits, options(temperature, 0, 1))) sum += c.probability;
    EXPECT_NEAR(sum, 1, 1e-15) << temperature;
    EXPECT_EQ(sample(logits, options(1e-30, 0, 1), 0, 0), 0);
  }
}

TEST(Candidates, RefuseLogitsThatAreNoNumbers) {
  const float nan = std::nanf("");
  for (const std::vector<float>& logits :
       {std::vector<float>{nan, 1}, {1, nan}, {1, kInfinity}, {-kInfinity, -kInfinity}}) {
    for (const double temperature : {0.0, 1.0}) {
      EXPECT_THROW(candidates(logits, options(temperature, 0, 1)), DataError);
    }
  }
  try {
    sample(std::vector<float>{1, nan}, {}, 0, 0);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("logit of token 1 is nan"));
  }
}

// Draws at 40000 places come as often as the probabilities say: each count is binomial, and stays
// within five standard deviations.
TEST(Sample, FollowsTheProbabilities) {
  const std::vector<float> logits = {0, 1, 2, -1, 0.5};
  for (const auto& o : {options(1, 0, 1), options(0.5, 4, 1), options(2, 0, 0.8)}) {
    const int draws = 40000;
    std::vector<double> counts(logits.size());
    for (int position = 0; position < draws; position++) {
      counts[static_cast<size_t>(sample(logits, o, 3, position))]++;
    }
    double expected_in_all = 0;
    for (const Candidate& c : candidates(logits, o)) {
      const double mean = draws * c.probability;
      EXPECT_NEAR(counts[static_cast<size_t>(c.token)], mean,
                  5 * std::sqrt(mean * (1 - c.probability)));
      expected_in_all += counts[static_cast<size_t>(c.token)];
    }
    EXPECT_EQ(expected_in_all, draws);
  }
}

// The same seed, prompt and place give the same token, for good; another of any gives another.
TEST(Sample, IsAFunctionOfSeedPromptAndPosition) {
  const std::vector<float> logits(1000);
  SamplingOptions o;
  const auto draws = [&](uint64_t seed, uint64_t stream, int64_t first) {
    o.seed = seed;
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < 5; i++) tokens.push_back(sample(logits, o, stream, first + i));
    return tokens;
  };
  EXPECT_THAT(draws(0, 0, 0), ElementsAre(379, 4, 313, 699, 690));
  EXPECT_THAT(draws(1, 0, 0), ElementsAre(958, 936, 243, 686, 96));
  EXPECT_THAT(draws(0, 1, 0), ElementsAre(777, 918, 152, 551, 275));
  EXPECT_THAT(draws(0, 0, 1), ElementsAre(4, 313, 699, 690, 130));
  EXPECT_THAT(draws(uint64_t{1} << 63, uint64_t{1} << 40, 7), ElementsAre(112, 747, 735, 461, 878));
}

TEST(LogSumExp, HoldsForAnySizeOfLogits) {
  EXPECT_DOUBLE_EQ(log_sum_exp(std::vector<float>{1000, 1000}), 1000 + std::log(2));
  EXPECT_DOUBLE_EQ(log_sum_exp(std::vector<float>{-2000, -2000, -kInfinity}), -2000 + std::log(2));
}

TEST(Logprobs, AreThoseOfTheModel) {
  const std::vector<float> logits = {1, 3, 2, 3, -kInfinity, 9};
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  const auto want = [&](size_t id) { return static_cast<double>(logits[id]) - std::log(sum); };
  // Token 5 has its part in the sum, but is not one of the tokenizer's 5.
  const PlaceLogprobs place = logprobs(logits, 2, 3, 5);
  EXPECT_EQ(place.chosen.token, 2);
  EXPECT_NEAR(place.chosen.logprob, want(2), 1e-12);
  ASSERT_EQ(place.top.size(), 3u);
  const std::vector<int32_t> likeliest = {1, 3, 2};
  for (size_t i = 0; i < 3; i++) {
    EXPECT_EQ(place.top[i].token, likeliest[i]);
    EXPECT_NEAR(place.top[i].logprob, want(static_cast<size_t>(likeliest[i])), 1e-12);
  }
  EXPECT_EQ(logprobs(logits, 0, 0, 5).top.size(), 0u);
  const auto all = logprobs(logits, 0, 1000, 5).top;
  ASSERT_EQ(all.size(), 5u);
  EXPECT_EQ(all[4].token, 4);
  EXPECT_EQ(all[4].logprob, -INFINITY);
}

}  // namespace
}  // namespace lockstep
