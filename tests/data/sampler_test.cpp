#include "data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/check.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Indices in the order of visits first .. first + count, one a step.
std::vector<int64_t> visits(int64_t n, uint64_t seed, int64_t first, int64_t count) {
  const Sampler sampler(n + 1, 1, 1, seed);
  std::vector<int64_t> order;
  for (int64_t p = first; p < first + count; p++) order.push_back(sampler.first_token(p, 0));
  return order;
}

TEST(Sampler, VisitsEachSequenceOnceAnEpoch) {
  for (const int64_t n : {1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 97, 100, 255, 256, 257, 1021, 4099}) {
    for (const uint64_t seed : {0u, 1u, 12345u}) {
      for (int64_t epoch = 0; epoch < 3; epoch++) {
        std::vector<int> seen(static_cast<size_t>(n));
        for (const int64_t index : visits(n, seed, epoch * n, n)) {
          ASSERT_GE(index, 0);
          ASSERT_LT(index, n);
          seen[static_cast<size_t>(index)]++;
        }
        EXPECT_THAT(seen, testing::Each(1)) << n << " sequences, epoch " << epoch;
      }
    }
  }
}

// A run that is resumed years later, by another version, must go on with the same sequences.
TEST(Sampler, KeepsItsOrderForever) {
  EXPECT_THAT(visits(10, 0, 0, 10), ElementsAre(9, 1, 3, 8, 5, 4, 2, 6, 0, 7));
  EXPECT_THAT(visits(10, 0, 10, 10), ElementsAre(4, 5, 1, 6, 0, 2, 3, 7, 9, 8));
  EXPECT_THAT(visits(10, 1, 0, 10), ElementsAre(4, 3, 9, 6, 1, 5, 8, 7, 2, 0));
  EXPECT_THAT(visits(1'000'003, 42, 1'000'003'000, 4), ElementsAre(142227, 270396, 676036, 332100));
  EXPECT_THAT(visits((int64_t{1} << 40) + 7, 7, 0, 3),
              ElementsAre(731904913070, 534467704361, 789901228683));
}

TEST(Sampler, IsAFunctionOfStepTimesBatchPlusPlace) {
  const Sampler one(1000, 9, 1, 5), eight(1000, 9, 8, 5);
  for (int64_t p = 0; p < 400; p++) {
    EXPECT_EQ(one.first_token(p, 0), eight.first_token(p / 8, p % 8)) << p;
  }
}

TEST(Sampler, SequencesLieInTheSplit) {
  // 100 tokens, T = 9: the last token of a sequence's targets is token 99 at most.
  const Sampler sampler(100, 9, 4, 0);
  EXPECT_EQ(sampler.num_sequences(), 11);
  for (int64_t step = 0; step < 20; step++) {
    for (int64_t place = 0; place < 4; place++) {
      const int64_t first = sampler.first_token(step, place);
      EXPECT_EQ(first % 9, 0);
      EXPECT_LE(first + 9, 99);
    }
  }
  EXPECT_DOUBLE_EQ(sampler.epoch(0), 0);
  EXPECT_DOUBLE_EQ(sampler.epoch(11), 4);
}

// Each of n indices comes at each of n places equally often over many epochs: chi-squared has
// (n - 1)^2 degrees of freedom, f; beyond f + 5 sqrt(2 f) + 10 it comes less than once in 10^4.
TEST(Sampler, SpreadsEveryIndexOverEveryPlace) {
  for (const int64_t n : {2, 3, 7, 12}) {
    const int64_t epochs = 3000;
    std::vector<double> counts(static_cast<size_t>(n * n));
    const auto order = visits(n, 99, 0, n * epochs);
    for (int64_t p = 0; p < n * epochs; p++) {
      counts[static_cast<size_t>(p % n * n + order[static_cast<size_t>(p)])]++;
    }
    const double expected = static_cast<double>(epochs) / static_cast<double>(n);
    double chi_squared = 0;
    for (const double count : counts) chi_squared += (count - expected) * (count - expected);
    chi_squared /= expected;
    const double freedom = static_cast<double>((n - 1) * (n - 1));
    EXPECT_LT(chi_squared, freedom + 5 * std::sqrt(2 * freedom) + 10) << n;
  }
}

// Neighbours in the data do not stay neighbours: the mean distance of successive visits of a random
// order is n / 3, with a standard deviation below n / sqrt(n).
TEST(Sampler, SpreadsNeighboursApart) {
  const int64_t n = 10007;
  for (const uint64_t seed : {0u, 1u, 2u}) {
    const auto order = visits(n, seed, 0, n);
    double distance = 0;
    for (size_t p = 1; p < order.size(); p++) {
      distance += static_cast<double>(std::abs(order[p] - order[p - 1]));
    }
    distance /= static_cast<double>(n - 1);
    EXPECT_NEAR(distance, static_cast<double>(n) / 3, 5 * std::sqrt(static_cast<double>(n)));
  }
}

TEST(Sampler, EpochsAndSeedsDiffer) {
  const auto first = visits(1000, 3, 0, 1000), second = visits(1000, 3, 1000, 1000),
             other = visits(1000, 4, 0, 1000);
  int same_epoch = 0, same_seed = 0;
  for (size_t i = 0; i < 1000; i++) {
    same_epoch += first[i] == second[i];
    same_seed += first[i] == other[i];
  }
  // Fixed points of a random permutation: Poisson with mean 1; over 9 has probability 1e-7.
  EXPECT_LE(same_epoch, 9);
  EXPECT_LE(same_seed, 9);
}

TEST(Sampler, RefusesASplitWithoutASequence) {
  EXPECT_NO_THROW(Sampler(9, 8, 1, 0));
  for (const int64_t tokens : {0, 1, 8}) {
    try {
      Sampler(tokens, 8, 1, 0);
      FAIL() << tokens;
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr("--context-length 8 needs 9"));
    }
  }
}

}  // namespace
}  // namespace lockstep
