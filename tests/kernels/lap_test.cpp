#include "kernels/lap.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace lockstep::kernels {
namespace {

TEST(Lap, IsTheTimeBetweenTwoCalls) {
  Stream stream;
  double seconds = 0;
  const auto before = std::chrono::steady_clock::now();
  lap(&seconds, stream);
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  lap(&seconds, stream);
  const std::chrono::duration<double> all = std::chrono::steady_clock::now() - before;
  // A double has 2e-10 s for a machine that has been up for ten days.
  EXPECT_GE(seconds, 0.003 - 1e-8);
  EXPECT_LE(seconds, all.count() + 1e-8);
}

}  // namespace
}  // namespace lockstep::kernels
