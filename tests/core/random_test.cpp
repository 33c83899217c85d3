#include "core/random.h"

#include <gtest/gtest.h>

#include <set>

namespace lockstep {
namespace {

// Known answers of philox4x32 with 10 rounds, from kat_vectors of Random123, the authors' library.
TEST(Philox, GivesThePublishedAnswers) {
  struct Answer {
    PhiloxCounter counter;
    PhiloxKey key;
    PhiloxCounter words;
  };
  const Answer answers[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Answer& answer : answers) EXPECT_EQ(philox(answer.counter, answer.key), answer.words);
}

TEST(Philox, KeyHoldsBothHalvesOfTheSeed) {
  EXPECT_EQ(philox_key(0x0123456789abcdef), (PhiloxKey{0x89abcdef, 0x01234567}));
}

TEST(Philox, EveryPartOfCounterAndKeyMatters) {
  std::set<PhiloxCounter> seen{philox({1, 2, 3, 4}, {5, 6})};
  for (int i = 0; i < 4; i++) {
    PhiloxCounter counter{1, 2, 3, 4};
    counter[i] ^= 0x80000000u;
    EXPECT_TRUE(seen.insert(philox(counter, {5, 6})).second) << i;
  }
  EXPECT_TRUE(seen.insert(philox({1, 2, 3, 4}, {5 ^ 0x80000000u, 6})).second);
  EXPECT_TRUE(seen.insert(philox({1, 2, 3, 4}, {5, 6 ^ 0x80000000u})).second);
}

TEST(Uniform, IsInItsRangeAndEven) {
  EXPECT_EQ(uniform(0), 0.0f);
  EXPECT_EQ(uniform(0xff), 0.0f);
  EXPECT_EQ(uniform(0x80000000u), 0.5f);
  EXPECT_EQ(uniform(0xffffffffu), 1.0f - 0x1p-24f);
  constexpr uint32_t kCount = 100'000;
  int tenths[10] = {};
  double sum = 0;
  for (uint32_t i = 0; i < kCount; i++) {
    for (uint32_t word : philox({i, 0, 0, 0}, {1, 0})) {
      tenths[static_cast<int>(uniform(word) * 10)]++;
      sum += uniform(word);
    }
  }
  // Four standard deviations: of a count sqrt(n p (1 - p)), of the mean 1 / sqrt(12 n).
  constexpr double kNumbers = 4.0 * kCount;
  for (int count : tenths) EXPECT_NEAR(count, kNumbers / 10, 4 * std::sqrt(kNumbers * 0.09));
  EXPECT_NEAR(sum / kNumbers, 0.5, 4 / std::sqrt(12 * kNumbers));
}

TEST(Normal, HasTheMomentsAndTailsOfTheNormalDistribution) {
  constexpr uint32_t kCount = 100'000;
  double moments[5] = {};
  int beyond_two = 0;
  for (uint32_t i = 0; i < kCount; i++) {
    const PhiloxCounter words = philox({i, 0, 0, 0}, {2, 0});
    for (const auto& pair : {normal(words[0], words[1]), normal(words[2], words[3])}) {
      for (double x : pair) {
        for (int k = 1; k <= 4; k++) moments[k] += std::pow(x, k) / (4.0 * kCount);
        beyond_two += std::abs(x) > 2;
      }
    }
  }
  // Variances of the sample moments: 1, 2, 15, 96 over n.
  constexpr double kNumbers = 4.0 * kCount;
  EXPECT_NEAR(moments[1], 0, 4 * std::sqrt(1 / kNumbers));
  EXPECT_NEAR(moments[2], 1, 4 * std::sqrt(2 / kNumbers));
  EXPECT_NEAR(moments[3], 0, 4 * std::sqrt(15 / kNumbers));
  EXPECT_NEAR(moments[4], 3, 4 * std::sqrt(96 / kNumbers));
  constexpr double kBeyondTwo = 0.0455002639;
  EXPECT_NEAR(beyond_two, kNumbers * kBeyondTwo, 4 * std::sqrt(kNumbers * kBeyondTwo));
}

TEST(Normal, IsFiniteForEveryWord) {
  for (uint32_t a : {0u, 1u, 0x7fffffffu, 0xffffffffu}) {
    for (uint32_t b : {0u, 1u, 0x80000000u, 0xffffffffu}) {
      for (float x : normal(a, b)) EXPECT_TRUE(std::isfinite(x)) << a << " " << b;
    }
  }
  EXPECT_EQ(normal(0xffffffffu, 0)[0], 0.0f);                       // radius sqrt(-2 log 1)
  EXPECT_NEAR(normal(0, 0)[0], std::sqrt(64 * std::log(2)), 1e-6);  // the largest there is
}

}  // namespace
}  // namespace lockstep
