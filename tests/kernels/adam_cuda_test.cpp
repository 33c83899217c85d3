#include "core/mirrored.h"
#include "kernels/adam.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

struct Update : AdamConstants, AdamStep {};

Update step_of(bool decoupled, float clip_value) {
  Update step;
  step.learning_rate = 0.01f, step.weight_decay = 0.1f, step.decoupled = decoupled;
  step.bias_correction1 = 0.1f, step.bias_correction2 = 0.05f;
  step.gradient_factor = 0.25f, step.clip_value = clip_value;
  return step;
}

// The same parameters on the CPU and on the device.
template <class T>
struct AdamPair {
  Values<T> weights;
  Values<float> master, exp_avg, exp_avg_sq, gradients;
  Stream host, stream{Device::cuda};
  OnDevice<T> device_weights;
  OnDevice<float> device_master, device_exp_avg, device_exp_avg_sq, device_gradients;

  AdamPair(int64_t count, int64_t shift, int64_t weights_shift)
      : weights({count}),
        master(Values<float>::normal({count}, 1)),
        exp_avg(Values<float>::normal({count}, 2, 0, 0.1f)),
        exp_avg_sq(Values<float>::normal({count}, 3, 0.5f, 0.05f)),
        gradients(Values<float>::normal({count}, 4)),
        device_weights(weights, stream, weights_shift),
        device_master(master, stream, shift),
        device_exp_avg(exp_avg, stream, shift),
        device_exp_avg_sq(exp_avg_sq, stream, shift),
        device_gradients(gradients, stream, shift) {}
  void run_on_device(const Update& step, int64_t begin, int64_t end) {
    const auto part = [&](auto& values) { return values.tensor().slice(begin, end); };
    adam_update(part(device_weights), part(device_master), part(device_exp_avg),
                part(device_exp_avg_sq), part(device_gradients), step, on_device(step), stream);
  }
  // For what is enqueued before the next call.
  const AdamStep* on_device(const AdamStep& step) {
    stream.synchronize();
    step_.host() = step;
    step_.upload(stream);
    return step_.there();
  }
  std::string device_bytes() {
    return device_weights.values().bytes() + device_master.values().bytes() +
           device_exp_avg.values().bytes() + device_exp_avg_sq.values().bytes();
  }

 private:
  Mirrored<AdamStep> step_{Device::cuda};
};

template <class T>
class AdamCuda : public CudaTest {};
TYPED_TEST_SUITE(AdamCuda, FloatTypes);

TYPED_TEST(AdamCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  for (const bool decoupled : {true, false}) {
    for (const float clip_value : {0.0f, 0.1f}) {
      for (const int64_t n : {1, 7, 1000, 5003}) {
        for (const int64_t shift : {0, 1, 3}) {
          const Update step = step_of(decoupled, clip_value);
          AdamPair<T> pair(n, shift, shift == 3 ? 2 : shift);
          const Values<float> old_master = pair.master, old_exp_avg = pair.exp_avg;
          adam_update(pair.weights.tensor(), pair.master.tensor(), pair.exp_avg.tensor(),
                      pair.exp_avg_sq.tensor(), pair.gradients.tensor(), step, &step, pair.host);
          pair.run_on_device(step, 0, n);
          const Values<T>& weights = pair.device_weights.values();
          const Values<float>&master = pair.device_master.values(),
                &exp_avg = pair.device_exp_avg.values(),
                &exp_avg_sq = pair.device_exp_avg_sq.values();
          for (int64_t i = 0; i < n; i++) {
            // Twice the error of one of them (adam_test.cpp): products may be fused with sums.
            const double g = std::abs(0.25 * pair.gradients[i]) + 0.1 * std::abs(old_master[i]);
            ASSERT_NEAR(exp_avg[i], pair.exp_avg[i],
                        8 * kRounding * (std::abs(old_exp_avg[i]) + g));
            ASSERT_NEAR(exp_avg_sq[i], pair.exp_avg_sq[i],
                        16 * kRounding * (pair.exp_avg_sq[i] + g * g));
            const double largest_update =
                0.01 * 10 * (std::abs(old_exp_avg[i]) + g) / std::sqrt(pair.exp_avg_sq[i] * 20);
            ASSERT_NEAR(master[i], pair.master[i],
                        6 * kRounding * std::abs(old_master[i]) + 32 * kRounding * largest_update);
            ASSERT_EQ(weights[i], to_float(from_float<T>(static_cast<float>(master[i]))));
          }
        }
      }
    }
  }
}

// A worker's shard may begin and end anywhere: a parameter's bits depend on it alone.
TYPED_TEST(AdamCuda, BitsDoNotDependOnPlaceOrAlignment) {
  using T = TypeParam;
  const Update step = step_of(true, 0.3f);
  AdamPair<T> whole(1000, 0, 0), parts(1000, 0, 0), shifted(1000, 1, 2);
  whole.run_on_device(step, 0, 1000);
  shifted.run_on_device(step, 0, 1000);
  int64_t begin = 0;
  for (const int64_t end : {1, 4, 21, 64, 397, 399, 399, 1000}) {
    parts.run_on_device(step, begin, end);
    begin = end;
  }
  EXPECT_EQ(parts.device_bytes(), whole.device_bytes());
  EXPECT_EQ(shifted.device_bytes(), whole.device_bytes());
}

TEST_F(CudaTest, AdamsWeightsMayBeTheMaster) {
  AdamPair<float> apart(777, 0, 0), together(777, 0, 0);
  const Update step = step_of(true, 0);
  apart.run_on_device(step, 0, 777);
  adam_update(together.device_master.tensor(), together.device_master.tensor(),
              together.device_exp_avg.tensor(), together.device_exp_avg_sq.tensor(),
              together.device_gradients.tensor(), step, together.on_device(step), together.stream);
  EXPECT_EQ(together.device_master.values().bytes(), apart.device_master.values().bytes());
}

TEST_F(CudaTest, AdamWritesNothingInASkippedStep) {
  AdamPair<bf16> pair(1003, 1, 2);
  const std::string before = pair.device_bytes();
  Update step = step_of(true, 0);
  step.skipped = 1;
  pair.run_on_device(step, 0, 1003);
  EXPECT_EQ(pair.device_bytes(), before);
}

TEST_F(CudaTest, AdamDoesNotClipNanAway) {
  AdamPair<float> pair(9, 0, 0);
  Values<float> gradients({9}, 1);
  for (const int64_t bad : {2, 8}) gradients.set(bad, kNan);  // in a group, and behind the last
  copy(pair.device_gradients.tensor(), gradients.tensor(), pair.stream);
  pair.run_on_device(step_of(true, 0.1f), 0, 9);
  for (int64_t i = 0; i < 9; i++) {
    EXPECT_EQ(std::isnan(pair.device_master.values()[i]), i == 2 || i == 8) << i;
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
