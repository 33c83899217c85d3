#include "trainer/progress.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

const ProgressStatus kStatus{.step = 120,
                             .steps = 600,
                             .loss = 4.21738,
                             .learning_rate = 5.914e-4,
                             .grad_norm = 0.8731,
                             .tokens_per_second = 12345.4,
                             .peak_share = 0.312,
                             .seconds_left = 250.2};

TEST(Progress, Text) {
  EXPECT_EQ(
      progress_text(kStatus),
      "step 120/600  loss 4.2174  lr 5.91e-04  grad norm 0.87  12,345 tokens/s  31 % of peak  "
      "4:10 left");
}

TEST(Progress, WhatIsNotKnownIsLeftOut) {
  ProgressStatus status = kStatus;
  status.peak_share = status.seconds_left = 0;
  status.skipped = true;
  status.step = 1;
  EXPECT_EQ(progress_text(status),
            "step   1/600  loss 4.2174  skipped  grad norm 0.87  12,345 tokens/s");
  status.peak_share = 1.7;  // of a peak that was measured while the machine was busy
  EXPECT_EQ(progress_text(status),
            "step   1/600  loss 4.2174  skipped  grad norm 0.87  12,345 tokens/s");
}

TEST(Progress, TheLiveLineFillsItsBarAndFitsTheTerminal) {
  EXPECT_EQ(live_line(kStatus, 200).substr(0, 33), "[######------------------------] ");
  for (int width = 30; width < 200; width++) {
    EXPECT_LT(live_line(kStatus, width).size(), static_cast<size_t>(width)) << width;
  }
  EXPECT_EQ(live_line(kStatus, 120), "[###-------------] " + progress_text(kStatus));
  EXPECT_EQ(live_line(kStatus, 80),
            "[#-------] step 120/600  loss 4.2174  lr 5.91e-04  12,345 tokens/s  4:10 left");
  EXPECT_EQ(live_line(kStatus, 50), "[#-------] step 120/600  loss 4.2174  4:10 left");
  ProgressStatus done = kStatus;
  done.step = 600;
  EXPECT_EQ(live_line(done, 40).substr(0, 11), "[########] ");
}

TEST(Progress, Durations) {
  EXPECT_EQ(duration_text(0.4), "0:00");
  EXPECT_EQ(duration_text(59.6), "1:00");
  EXPECT_EQ(duration_text(3599), "59:59");
  EXPECT_EQ(duration_text(3600 * 26 + 61), "26:01:01");
}

}  // namespace
}  // namespace lockstep
