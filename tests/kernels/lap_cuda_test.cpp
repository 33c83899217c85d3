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
  lap(seconds.there(), stream);
  seconds.download(stream);
  stream.synchronize();
  EXPECT_GE(seconds.host(), 0);
  EXPECT_LT(seconds.host(), 60) << "between two calls one after the other";
}

}  // namespace
}  // namespace lockstep::kernels::tests
