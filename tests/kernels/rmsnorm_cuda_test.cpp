#include "kernels/dropout.h"
#include "kernels/rmsnorm.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

constexpr float kEpsilon = 1e-5f;

// The same values on the CPU and on the device, some elements off its alignment.
template <class T>
struct RmsNormPair {
  Values<T> x, gain, dy, y, dx;
  Values<float> inv_rms, dgain;
  Stream host, stream{Device::cuda};
  OnDevice<T> device_x, device_gain, device_dy, device_y, device_dx;
  OnDevice<float> device_inv_rms, device_dgain;

  RmsNormPair(int64_t n, int64_t c, int64_t shift = 0)
      : x(Values<T>::normal({n, c}, 1, 0.5f, 2.0f)),
        gain(Values<T>::normal({c}, 2, 1.0f, 0.1f)),
        dy(Values<T>::normal({n, c}, 4)),
        y({n, c}),
        dx({n, c}, 2.0f),
        inv_rms({n}),
        dgain({c}, 10.0f),
        device_x(x, stream, shift),
        device_gain(gain, stream),
        device_dy(dy, stream),
        device_y(y, stream),
        device_dx(dx, stream, shift),
        device_inv_rms(inv_rms, stream),
        device_dgain(dgain, stream, shift) {}
  void run_on_cpu() {
    rmsnorm_forward(y.tensor(), inv_rms.tensor(), x.tensor(), {}, gain.tensor(), kEpsilon, host);
    rmsnorm_backward(dx.tensor(), dgain.tensor(), dy.tensor(), x.tensor(), gain.tensor(),
                     inv_rms.tensor(), host);
  }
  void run_on_device() {
    rmsnorm_forward(device_y.tensor(), device_inv_rms.tensor(), device_x.tensor(), {},
                    device_gain.tensor(), kEpsilon, stream);
    rmsnorm_backward(device_dx.tensor(), device_dgain.tensor(), device_dy.tensor(),
                     device_x.tensor(), device_gain.tensor(), device_inv_rms.tensor(), stream);
  }
  std::string device_bytes() {
    return device_y.values().bytes() + device_inv_rms.values().bytes() +
           device_dx.values().bytes() + device_dgain.values().bytes();
  }
};

// Relative error of a row's sum here, against the sum of magnitudes: a thread adds up its part, at
// most a 32nd of a row that a warp has and less of longer ones; then ten joins. The CPU's own comes
// on top.
double error_of_sums(int64_t c) {
  return (static_cast<double>(c) / 32 + 10) * kRounding + row_sum_error(c);
}

// A warp's rows and a block's, each whole packs and not, and rows that registers do not hold.
constexpr Size kCudaSizes[] = {{1, 1},    {3, 7},    {70, 64}, {5, 1000},
                               {3, 1031}, {2, 4096}, {2, 9001}};

template <class T>
class RmsNormCuda : public CudaTest {};
TYPED_TEST_SUITE(RmsNormCuda, FloatTypes);

TYPED_TEST(RmsNormCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  for (const auto [n, c] : kCudaSizes) {
    RmsNormPair<T> pair(n, c);
    pair.run_on_cpu(), pair.run_on_device();
    // All terms of the sum of squares are positive; the root halves its error.
    const double sums = error_of_sums(c), inverse_error = sums + 8 * kRounding;
    for (int64_t row = 0; row < n; row++) {
      const double inv_rms = pair.inv_rms[row];
      ASSERT_NEAR(pair.device_inv_rms.values()[row], inv_rms, inv_rms * inverse_error);
    }
    const Values<T>&y = pair.device_y.values(), &dx = pair.device_dx.values();
    for (int64_t i = 0; i < n * c; i++) {
      const double inv_rms = pair.inv_rms[i / c], h = std::abs(pair.x[i]) * inv_rms;
      ASSERT_NEAR(
          y[i], pair.y[i],
          std::abs(pair.y[i]) * (inverse_error + 4 * kRounding) + 2 * storage_error<T>(pair.y[i]))
          << n << " x " << c << " at " << i;
      // |h| averages at most 1, gains are below 1.6, dy below 6; each part errs like the sums.
      const double g = 6 * 1.6, dx_error = (1 + h) * g * (4 * inverse_error + 8 * kRounding);
      ASSERT_NEAR(dx[i], pair.dx[i],
                  inv_rms * dx_error + 4 * kRounding + 2 * storage_error<T>(pair.dx[i]))
          << n << " x " << c << " at " << i;
    }
    for (int64_t k = 0; k < c; k++) {
      double size = 10;
      for (int64_t row = 0; row < n; row++) {
        size += std::abs(pair.dy[row * c + k] * pair.x[row * c + k] * pair.inv_rms[row]);
      }
      // Both sides add up at most 70 rows.
      ASSERT_NEAR(pair.device_dgain.values()[k], pair.dgain[k],
                  (150 * kRounding + inverse_error) * size);
    }
  }
}

TYPED_TEST(RmsNormCuda, BitsDoNotDependOnAlignment) {
  for (const auto [n, c] : {Size{9, 64}, {3, 1000}, {2, 2048}, {2, 8192}}) {
    RmsNormPair<TypeParam> aligned(n, c), shifted(n, c, 1);
    aligned.run_on_device(), shifted.run_on_device();
    EXPECT_EQ(aligned.device_bytes(), shifted.device_bytes()) << n << " x " << c;
  }
}

TYPED_TEST(RmsNormCuda, BitsOfARowDoNotDependOnTheOthers) {
  for (const int64_t c : {77, 1032}) {
    constexpr int64_t kRows = 30, kRow = 17;
    RmsNormPair<TypeParam> many(kRows, c), alone(1, c);
    Values<TypeParam> x({1, c}), dy({1, c});
    for (int64_t k = 0; k < c; k++) {
      x.set(k, static_cast<float>(many.x[kRow * c + k]));
      dy.set(k, static_cast<float>(many.dy[kRow * c + k]));
    }
    copy(alone.device_x.tensor(), x.tensor(), alone.stream);
    copy(alone.device_dy.tensor(), dy.tensor(), alone.stream);
    many.run_on_device(), alone.run_on_device();
    EXPECT_EQ(alone.device_y.values().bytes(),
              many.device_y.values().bytes(kRow * c, (kRow + 1) * c));
    EXPECT_EQ(alone.device_dx.values().bytes(),
              many.device_dx.values().bytes(kRow * c, (kRow + 1) * c));
  }
}

TYPED_TEST(RmsNormCuda, OutputMayBeInput) {
  for (const int64_t c : {33, 64, 5000}) {
    RmsNormPair<TypeParam> apart(5, c), in_place(5, c);
    apart.run_on_device();
    rmsnorm_forward(in_place.device_x.tensor(), in_place.device_inv_rms.tensor(),
                    in_place.device_x.tensor(), {}, in_place.device_gain.tensor(), kEpsilon,
                    in_place.stream);
    EXPECT_EQ(in_place.device_x.values().bytes(), apart.device_y.values().bytes());
  }
}

// The same bits as of the two operations, also where the sum takes the place of what is added.
TYPED_TEST(RmsNormCuda, OfASumIsTheNormOfTheSum) {
  using T = TypeParam;
  for (const int64_t c : {7, 64, 1031, 9001}) {
    RmsNormPair<T> apart(5, c, 1), together(5, c, 1);
    OnDevice<T> added(Values<T>::normal({5, c}, 6), apart.stream),
        sum(Values<T>({5, c}), apart.stream);
    residual_add(sum.tensor(), apart.device_x.tensor(), added.tensor(), {}, apart.stream);
    rmsnorm_forward(apart.device_y.tensor(), apart.device_inv_rms.tensor(), sum.tensor(), {},
                    apart.device_gain.tensor(), kEpsilon, apart.stream);
    apart.stream.synchronize();
    rmsnorm_forward(together.device_y.tensor(), together.device_inv_rms.tensor(),
                    together.device_x.tensor(), {added.tensor(), added.tensor()},
                    together.device_gain.tensor(), kEpsilon, together.stream);
    together.stream.synchronize();
    EXPECT_EQ(added.values().bytes(), sum.values().bytes()) << c;
    EXPECT_EQ(together.device_y.values().bytes(), apart.device_y.values().bytes()) << c;
    EXPECT_EQ(together.device_inv_rms.values().bytes(), apart.device_inv_rms.values().bytes());
  }
}

// More rows than blocks that there may be, so that blocks have several for each team. All values
// are small integers: sums are exact in any order.
TEST_F(CudaTest, RmsNormAddsUpManyRowsExactly) {
  constexpr int64_t kRows = 10'001, kChannels = 3;
  Values<float> x({kRows, kChannels}), dy({kRows, kChannels}), inv_rms({kRows}, 1);
  std::vector<double> dgain(kChannels, 10);
  for (int64_t i = 0; i < x.size(); i++) {
    x.set(i, static_cast<float>(i % 5 - 1)), dy.set(i, static_cast<float>(i % 7 - 2));
    dgain[i % kChannels] += x[i] * dy[i];
  }
  Stream stream(Device::cuda);
  OnDevice<float> device_x(x, stream), device_dy(dy, stream), device_inv_rms(inv_rms, stream);
  OnDevice<float> dx(Values<float>({kRows, kChannels}), stream);
  OnDevice<float> gain(Values<float>({kChannels}, 1), stream);
  OnDevice<float> into_gain(Values<float>({kChannels}, 10), stream);
  rmsnorm_backward(dx.tensor(), into_gain.tensor(), device_dy.tensor(), device_x.tensor(),
                   gain.tensor(), device_inv_rms.tensor(), stream);
  EXPECT_EQ(into_gain.values().doubles(), dgain);
}

TEST_F(CudaTest, RmsNormOfNoRows) {
  RmsNormPair<float> pair(0, 8);
  pair.run_on_device();
  EXPECT_EQ(pair.device_dgain.values().bytes(), pair.dgain.bytes());
}

}  // namespace
}  // namespace lockstep::kernels::tests
