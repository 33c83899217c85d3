#include "trainer/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/check.h"

namespace lockstep {
namespace {

constexpr double kPeak = 4e-4;

double ratio(Schedule schedule, int64_t update, int64_t warmup = 10, double floor = 0.1,
             int64_t total = 110) {
  return LrSchedule({schedule, kPeak, warmup, floor}, total).learning_rate(update) / kPeak;
}

// Everything here is a handful of float64 roundings.
constexpr double kRounding = 1e-14;

TEST(LrSchedule, WarmsUpLinearlyFromTheFirstUpdateToThePeak) {
  for (Schedule schedule : {Schedule::cosine, Schedule::linear, Schedule::constant,
                            Schedule::inverse_sqrt, Schedule::wsd}) {
    EXPECT_NEAR(ratio(schedule, 0), 0.1, kRounding);
    EXPECT_NEAR(ratio(schedule, 4), 0.5, kRounding);
    EXPECT_NEAR(ratio(schedule, 9), 1.0, kRounding);
  }
}

TEST(LrSchedule, Table) {
  struct Row {
    Schedule schedule;
    int64_t update;
    double ratio;
  };
  // Warm-up 10, 110 updates, floor 0.1. wsd decays over the last 22, from update 88 on.
  const Row rows[] = {
      {Schedule::cosine, 10, 1},
      {Schedule::cosine, 35, 0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2},
      {Schedule::cosine, 60, 0.55},
      {Schedule::cosine, 110, 0.1},
      {Schedule::cosine, 1000, 0.1},
      {Schedule::linear, 10, 1},
      {Schedule::linear, 60, 0.55},
      {Schedule::linear, 85, 0.325},
      {Schedule::linear, 110, 0.1},
      {Schedule::constant, 10, 1},
      {Schedule::constant, 109, 1},
      {Schedule::inverse_sqrt, 10, std::sqrt(10.0 / 11)},
      {Schedule::inverse_sqrt, 39, 0.5},
      {Schedule::inverse_sqrt, 89, 1.0 / 3},
      {Schedule::inverse_sqrt, 100000, 0.1},
      {Schedule::wsd, 50, 1},
      {Schedule::wsd, 88, 1},
      {Schedule::wsd, 99, 0.1 + 0.9 * (1 - std::sqrt(0.5))},
      {Schedule::wsd, 110, 0.1},
  };
  for (const Row& row : rows) {
    EXPECT_NEAR(ratio(row.schedule, row.update), row.ratio, kRounding)
        << name(row.schedule) << " at " << row.update;
  }
}

TEST(LrSchedule, WithoutWarmUp) {
  EXPECT_NEAR(ratio(Schedule::cosine, 0, 0), 1, kRounding);
  EXPECT_NEAR(ratio(Schedule::inverse_sqrt, 0, 0), 1, kRounding);
  EXPECT_NEAR(ratio(Schedule::inverse_sqrt, 3, 0), 0.5, kRounding);
}

TEST(LrSchedule, OnlyWarmUp) {
  EXPECT_NEAR(ratio(Schedule::cosine, 109, 110), 1, kRounding);
  EXPECT_NEAR(ratio(Schedule::linear, 20, 200), 21.0 / 200, kRounding);
}

TEST(LrSchedule, RefusesValuesOutOfRange) {
  EXPECT_THROW(LrSchedule({Schedule::cosine, 0, 0, 0.1}, 10), UsageError);
  EXPECT_THROW(LrSchedule({Schedule::cosine, NAN, 0, 0.1}, 10), UsageError);
  EXPECT_THROW(LrSchedule({Schedule::cosine, 1, -1, 0.1}, 10), UsageError);
  EXPECT_THROW(LrSchedule({Schedule::cosine, 1, 0, 1.1}, 10), UsageError);
}

}  // namespace
}  // namespace lockstep
