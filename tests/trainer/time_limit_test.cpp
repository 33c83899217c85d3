#include "trainer/time_limit.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

using Clock = TimeLimit::Clock;

Clock::time_point at(double seconds) {
  return Clock::time_point() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// 100 s, of which 5 are to spare. Two steps must fit, and the save.
TEST(TimeLimit, LeavesRoomForTwoStepsAndASave) {
  TimeLimit limit(at(0), at(100), 0, 0);
  EXPECT_EQ(limit.margin(), 5);
  limit.step_took(3);
  limit.step_took(4);
  limit.step_took(2);
  limit.save_took(2);  // times 1.5
  EXPECT_FALSE(limit.must_stop(at(83.9), {}));
  EXPECT_TRUE(limit.must_stop(at(84.1), {}));
}

TEST(TimeLimit, AndForWhatIsDueBeforeThem) {
  TimeLimit limit(at(0), at(100), 0, 0);
  limit.step_took(4);
  limit.save_took(2);
  limit.evaluation_took(7);
  const TimeLimit::Ahead ahead{.evaluations = 2, .saves = 3};
  EXPECT_FALSE(limit.must_stop(at(100 - 5 - 8 - 14 - 9 - 0.1), ahead));
  EXPECT_TRUE(limit.must_stop(at(100 - 5 - 8 - 14 - 9 + 0.1), ahead));
}

TEST(TimeLimit, WhatWasNotMeasuredIsEstimated) {
  // 2 GB at 100 MB/s; an evaluation of three steps.
  TimeLimit limit(at(0), at(100), int64_t{2'000'000'000}, 3);
  EXPECT_EQ(limit.save_seconds(), 20);
  limit.step_took(2);
  const TimeLimit::Ahead ahead{.evaluations = 1, .saves = 1};
  EXPECT_FALSE(limit.must_stop(at(100 - 5 - 4 - 6 - 20 - 0.1), ahead));
  EXPECT_TRUE(limit.must_stop(at(100 - 5 - 4 - 6 - 20 + 0.1), ahead));
  limit.save_took(1), limit.evaluation_took(1);
  EXPECT_EQ(limit.save_seconds(), 1.5);
  EXPECT_FALSE(limit.must_stop(at(100 - 5 - 4 - 1 - 1.5 - 0.1), ahead));
}

TEST(TimeLimit, OldStepsAreForgotten) {
  TimeLimit limit(at(0), at(1000), 0, 0);
  limit.step_took(100);
  EXPECT_TRUE(limit.must_stop(at(800), {}));
  for (int i = 0; i < 100; i++) limit.step_took(1);
  EXPECT_FALSE(limit.must_stop(at(800), {}));
}

TEST(TimeLimit, TheMarginIsFrom1To60Seconds) {
  EXPECT_EQ(TimeLimit(at(0), at(4), 0, 0).margin(), 1);
  EXPECT_EQ(TimeLimit(at(0), at(36000), 0, 0).margin(), 60);
  EXPECT_EQ(TimeLimit(at(50), at(10), 0, 0).margin(), 1) << "it is over already";
}

TEST(TimeLimit, TooShortForASave) {
  EXPECT_FALSE(TimeLimit(at(0), at(2.1), 100'000'000, 0).too_short_to_save(at(0)));
  EXPECT_TRUE(TimeLimit(at(0), at(1.9), 100'000'000, 0).too_short_to_save(at(0)));
}

}  // namespace
}  // namespace lockstep
