#include "trainer/clip_policy.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

TEST(ClipPolicy, FactorByGlobalNorm) {
  const ClipPolicy clip{.norm = 2};
  EXPECT_EQ(clip.factor(0), 1);
  EXPECT_EQ(clip.factor(1.5), 1);
  EXPECT_EQ(clip.factor(2), 1);
  EXPECT_EQ(clip.factor(8), 0.25);
}

TEST(ClipPolicy, ZeroTurnsItOff) { EXPECT_EQ(ClipPolicy{}.factor(1e30), 1); }

}  // namespace
}  // namespace lockstep
