#include <chrono>
#include <thread>

#include "core/mirrored.h"
#include "kernels/lap.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

using LapCuda = CudaTest;

// Nanoseconds since some epoch, rounded to a double of seconds: to 2^-22 s, in each of two
// readings.
TEST_F(LapCuda, IsTheTimeBetweenTwoCalls) {
  Stream stream(Device::cuda);
  Mirrored<double> seconds(Device::cuda);
  seconds.upload(stream);
  lap(seconds.there(), stream);
  seconds.download(stream);
  stream.synchronize();
  EXPECT_GT(seconds.host(), 1);
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  lap(seconds.there(), stream);
  seconds.download(stream);
  stream.synchronize();
  const double whole = std::chrono::duration<double>(Clock::now() - start).count();
  EXPECT_GE(seconds.host(), 0.003 - 0x1p-21);
  // The first call came before `start` at most by what synchronising took.
  EXPECT_LT(seconds.host(), whole + 1);
}

}  // namespace
}  // namespace lockstep::kernels::tests
