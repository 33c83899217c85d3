#include <cmath>
#include <random>

#include "core/mirrored.h"
#include "kernels/clip.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

using ClipCuda = CudaTest;

// The sums are the CPU's, and what is made of them is correctly rounded on both. The second size is
// more than the kernel's shared memory holds.
TEST_F(ClipCuda, DecidesAsTheCpu) {
  Stream host, stream(Device::cuda);
  for (const StepNumbers places : {StepNumbers{3, 2, 2}, {8, 4, 200}, {1, 1, 0}}) {
    for (const bool finite : {true, false}) {
      std::mt19937 random(1);
      std::uniform_real_distribution<float> uniform(0, 3);
      const int64_t count = places.workers * places.size();
      std::vector<double> numbers(static_cast<size_t>(count));
      for (double& number : numbers) number = uniform(random);
      numbers[0] = 0;
      if (!finite) numbers.back() = std::nan("");
      Buffer there(DType::int32, {2 * count}, Device::cuda);
      copy(there.tensor(), Tensor(numbers.data(), DType::int32, {2 * count}), stream);

      Mirrored<ClipInputs> inputs(Device::cuda);
      Mirrored<StepDecision> decision(Device::cuda);
      Mirrored<AdamStep> step(Device::cuda);
      inputs.host() = {.loss_scale = 8, .clip_norm = 0.5};
      step.host().learning_rate = 7;
      inputs.upload(stream), step.upload(stream);
      StepDecision want;
      std::vector<double> want_seconds(static_cast<size_t>(places.workers)), seconds(want_seconds);
      Buffer seconds_there(DType::int32, {2 * places.workers}, Device::cuda);
      AdamStep want_step = step.host();
      decide_step(&want, &want_step, want_seconds.data(), numbers.data(), places, &inputs.host(),
                  host);
      decide_step(decision.there(), step.there(),
                  static_cast<double*>(seconds_there.tensor().data()),
                  static_cast<double*>(there.tensor().data()), places, inputs.there(), stream);
      copy(Tensor(seconds.data(), DType::int32, {2 * places.workers}), seconds_there.tensor(),
           stream);
      decision.download(stream), step.download(stream);
      stream.synchronize();
      if (finite) {
        EXPECT_EQ(seconds, want_seconds);
        EXPECT_EQ(decision.host().loss_sum, want.loss_sum);
        EXPECT_EQ(decision.host().sum_of_squares, want.sum_of_squares);
        EXPECT_EQ(step.host().gradient_factor, want_step.gradient_factor);
      }
      EXPECT_EQ(step.host().skipped, finite ? 0 : 1);
      EXPECT_EQ(step.host().learning_rate, 7);
      EXPECT_EQ(decision.host().stop, want.stop);
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
