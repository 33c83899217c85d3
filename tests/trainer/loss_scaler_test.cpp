#include "trainer/loss_scaler.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

TEST(LossScaler, StartsAt65536AndDoublesAfter2000CleanSteps) {
  LossScaler scaler = LossScaler::dynamic();
  EXPECT_EQ(scaler.scale(), 65536);
  for (int step = 0; step < 1999; step++) scaler.succeeded();
  EXPECT_EQ(scaler.scale(), 65536);
  EXPECT_EQ(scaler.clean_steps(), 1999);
  scaler.succeeded();
  EXPECT_EQ(scaler.scale(), 131072);
  EXPECT_EQ(scaler.clean_steps(), 0);
  for (int step = 0; step < 2000; step++) scaler.succeeded();
  EXPECT_EQ(scaler.scale(), 262144);
}

TEST(LossScaler, HalvesAtEveryOverflowAndCountsCleanStepsAnew) {
  LossScaler scaler = LossScaler::dynamic();
  for (int step = 0; step < 1999; step++) scaler.succeeded();
  scaler.overflowed();
  EXPECT_EQ(scaler.scale(), 32768);
  for (int step = 0; step < 1999; step++) scaler.succeeded();
  EXPECT_EQ(scaler.scale(), 32768);
  scaler.succeeded();
  EXPECT_EQ(scaler.scale(), 65536);
  scaler.overflowed();
  scaler.overflowed();
  EXPECT_EQ(scaler.scale(), 16384);
}

TEST(LossScaler, StopsAtOne) {
  LossScaler scaler = LossScaler::dynamic();
  for (int step = 0; step < 16; step++) {
    EXPECT_TRUE(scaler.can_lower());
    scaler.overflowed();
  }
  EXPECT_EQ(scaler.scale(), 1);
  EXPECT_FALSE(scaler.can_lower());
  scaler.overflowed();
  EXPECT_EQ(scaler.scale(), 1);
}

TEST(LossScaler, AFixedScaleStays) {
  LossScaler scaler = LossScaler::fixed(1024);
  scaler.overflowed();
  for (int step = 0; step < 5000; step++) scaler.succeeded();
  EXPECT_EQ(scaler.scale(), 1024);
  EXPECT_FALSE(scaler.can_lower());
}

TEST(LossScaler, GoesOnWhereItWas) {
  LossScaler scaler = LossScaler::dynamic();
  scaler.restore(512, 1999);
  scaler.succeeded();
  EXPECT_EQ(scaler.scale(), 1024);
}

}  // namespace
}  // namespace lockstep
