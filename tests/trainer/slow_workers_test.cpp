#include "trainer/slow_workers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace lockstep {
namespace {

using testing::ElementsAre;

// A window of steps that all take this long; whether the last one changed something.
bool window(SlowWorkers& workers, const std::vector<double>& seconds) {
  const double longest = *std::max_element(seconds.begin(), seconds.end());
  bool changed = false;
  double all = 0;
  for (int i = 0; i < SlowWorkers::kWindow || all < SlowWorkers::kWindow_s; i++) {
    EXPECT_FALSE(changed) << "before the window is full";
    all += longest;
    changed = workers.add(seconds);
  }
  return changed;
}

std::vector<int> ranks(const SlowWorkers& workers) {
  std::vector<int> all;
  for (const auto& slow : workers.slow()) all.push_back(slow.rank);
  return all;
}

TEST(SlowWorkers, NamesTheOneThatIsSlowerThanTheOthers) {
  SlowWorkers workers(4);
  EXPECT_FALSE(window(workers, {1, 1.1, 1, 1}));
  EXPECT_TRUE(window(workers, {1, 1, 1.3, 1}));
  ASSERT_THAT(ranks(workers), ElementsAre(2));
  EXPECT_EQ(workers.slow()[0].seconds, 1.3);
  EXPECT_EQ(workers.slow()[0].others_seconds, 1);
}

TEST(SlowWorkers, OnceUntilItChanges) {
  SlowWorkers workers(3);
  EXPECT_TRUE(window(workers, {1, 1, 1.5}));
  EXPECT_FALSE(window(workers, {1, 1, 1.6}));
  EXPECT_TRUE(window(workers, {1, 1, 1}));
  EXPECT_THAT(ranks(workers), ElementsAre());
  EXPECT_TRUE(window(workers, {1, 1, 1.5}));
  EXPECT_TRUE(window(workers, {1.5, 1, 1}));
  EXPECT_THAT(ranks(workers), ElementsAre(0));
}

TEST(SlowWorkers, UpToAFifthIsNotSlow) {
  SlowWorkers workers(3);
  EXPECT_FALSE(window(workers, {10, 10, 11.9}));
  EXPECT_TRUE(window(workers, {10, 10, 12.1}));
  // Of milliseconds half of one is noise.
  SlowWorkers quick(3);
  EXPECT_FALSE(window(quick, {1e-3, 1e-3, 1.4e-3}));
  EXPECT_TRUE(window(quick, {1e-3, 1e-3, 1.6e-3}));
}

TEST(SlowWorkers, AFewSlowStepsSayNothing) {
  SlowWorkers workers(2);
  for (int i = 0; i < 3 * SlowWorkers::kWindow; i++) {
    EXPECT_FALSE(workers.add(std::vector<double>{1, i % 3 == 0 ? 50.0 : 1.0}));
  }
}

// Of short steps many go into a window: that another program was in the way of 20 says nothing.
TEST(SlowWorkers, AMomentOfShortStepsSaysNothing) {
  SlowWorkers workers(2);
  for (int i = 0; i < 3000; i++) {
    const bool busy = i / SlowWorkers::kWindow % 3 == 0;
    EXPECT_FALSE(workers.add(std::vector<double>{0.003, busy ? 0.009 : 0.003})) << i;
  }
}

TEST(SlowWorkers, OfTwoTheSlowerOneAndOfOneNone) {
  SlowWorkers two(2), one(1);
  EXPECT_TRUE(window(two, {1.3, 1}));
  EXPECT_THAT(ranks(two), ElementsAre(0));
  EXPECT_FALSE(window(one, {1}));
  EXPECT_FALSE(window(one, {9}));
}

}  // namespace
}  // namespace lockstep
