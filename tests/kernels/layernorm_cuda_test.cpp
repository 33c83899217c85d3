#include "kernels/dropout.h"
#include "kernels/layernorm.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

constexpr float kEpsilon = 1e-5f;

// The same values on the CPU and on the device, some elements off its alignment.
template <class T>
struct LayerNormPair {
  Values<T> x, gain, bias, dy, y, dx;
  Values<float> mean, rstd, dgain, dbias;
  Stream host, stream{Device::cuda};
  OnDevice<T> device_x, device_gain, device_bias, device_dy, device_y, device_dx;
  OnDevice<float> device_mean, device_rstd, device_dgain, device_dbias;

  LayerNormPair(int64_t n, int64_t c, int64_t shift = 0)
      : x(Values<T>::normal({n, c}, 1, 0.5f, 2.0f)),
        gain(Values<T>::normal({c}, 2, 1.0f, 0.1f)),
        bias(Values<T>::normal({c}, 3, 0.0f, 0.5f)),
        dy(Values<T>::normal({n, c}, 4)),
        y({n, c}),
        dx({n, c}, 2.0f),
        mean({n}),
        rstd({n}),
        dgain({c}, 10.0f),
        dbias({c}, 20.0f),
        device_x(x, stream, shift),
        device_gain(gain, stream),
        device_bias(bias, stream),
        device_dy(dy, stream),
        device_y(y, stream),
        device_dx(dx, stream, shift),
        device_mean(mean, stream),
        device_rstd(rstd, stream),
        device_dgain(dgain, stream, shift),
        device_dbias(dbias, stream) {}
  void run_on_cpu() {
    layernorm_forward(y.tensor(), mean.tensor(), rstd.tensor(), x.tensor(), {}, gain.tensor(),
                      bias.tensor(), kEpsilon, host);
    layernorm_backward(dx.tensor(), dgain.tensor(), dbias.tensor(), dy.tensor(), x.tensor(),
                       gain.tensor(), mean.tensor(), rstd.tensor(), host);
  }
  void run_on_device() {
    layernorm_forward(device_y.tensor(), device_mean.tensor(), device_rstd.tensor(),
                      device_x.tensor(), {}, device_gain.tensor(), device_bias.tensor(), kEpsilon,
                      stream);
    layernorm_backward(device_dx.tensor(), device_dgain.tensor(), device_dbias.tensor(),
                       device_dy.tensor(), device_x.tensor(), device_gain.tensor(),
                       device_mean.tensor(), device_rstd.tensor(), stream);
  }
  std::string device_bytes() {
    return device_y.values().bytes() + device_mean.values().bytes() + device_rstd.values().bytes() +
           device_dx.values().bytes() + device_dgain.values().bytes() +
           device_dbias.values().bytes();
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
class LayerNormCuda : public CudaTest {};
TYPED_TEST_SUITE(LayerNormCuda, FloatTypes);

TYPED_TEST(LayerNormCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  for (const auto [n, c] : kCudaSizes) {
    LayerNormPair<T> pair(n, c);
    pair.run_on_cpu(), pair.run_on_device();
    const double sums = error_of_sums(c);
    for (int64_t row = 0; row < n; row++) {
      // |x| averages below 2.5; rstd is about 1/2, but any where a row has one channel or few.
      const double mean = pair.mean[row], rstd = pair.rstd[row], mean_error = 2 * sums * 2.5;
      ASSERT_NEAR(pair.device_mean.values()[row], mean, mean_error) << n << " x " << c;
      const double rstd_error = sums + 8 * kRounding + std::pow(mean_error * rstd, 2);
      ASSERT_NEAR(pair.device_rstd.values()[row], rstd, rstd * rstd_error) << n << " x " << c;
    }
    const Values<T>&y = pair.device_y.values(), &dx = pair.device_dx.values();
    for (int64_t i = 0; i < n * c; i++) {
      const double rstd = pair.rstd[i / c], h = std::abs(pair.x[i] - pair.mean[i / c]) * rstd;
      // |h| averages at most 1, gains are below 1.6, dy below 6; roundings of each part, twice.
      const double h_error = 5 * sums * rstd + h * (sums + 8 * kRounding);
      ASSERT_NEAR(y[i], pair.y[i],
                  1.6 * h_error + 8 * kRounding * (h * 1.6 + 3) + 2 * storage_error<T>(pair.y[i]))
          << n << " x " << c << " at " << i;
      const double g = 6 * 1.6, dx_error = (1 + h) * g * (2 * sums + h_error + 16 * kRounding);
      ASSERT_NEAR(dx[i], pair.dx[i],
                  rstd * dx_error + 4 * kRounding + 2 * storage_error<T>(pair.dx[i]))
          << n << " x " << c << " at " << i;
    }
    for (int64_t k = 0; k < c; k++) {
      double dgain_size = 10, dbias_size = 20, h_error = 0;
      for (int64_t row = 0; row < n; row++) {
        const double upstream = std::abs(pair.dy[row * c + k]), rstd = pair.rstd[row];
        const double h = std::abs(pair.x[row * c + k] - pair.mean[row]) * rstd;
        dgain_size += upstream * h, dbias_size += upstream;
        h_error += upstream * (5 * sums * rstd + h * (sums + 8 * kRounding));
      }
      // Both sides add up at most 70 rows.
      ASSERT_NEAR(pair.device_dgain.values()[k], pair.dgain[k],
                  150 * kRounding * dgain_size + h_error);
      ASSERT_NEAR(pair.device_dbias.values()[k], pair.dbias[k], 150 * kRounding * dbias_size);
    }
  }
}

TYPED_TEST(LayerNormCuda, BitsDoNotDependOnAlignment) {
  for (const auto [n, c] : {Size{9, 64}, {3, 1000}, {2, 2048}, {2, 8192}}) {
    LayerNormPair<TypeParam> aligned(n, c), shifted(n, c, 1);
    aligned.run_on_device(), shifted.run_on_device();
    EXPECT_EQ(aligned.device_bytes(), shifted.device_bytes()) << n << " x " << c;
  }
}

TYPED_TEST(LayerNormCuda, BitsOfARowDoNotDependOnTheOthers) {
  for (const int64_t c : {77, 1032}) {
    constexpr int64_t kRows = 30, kRow = 17;
    LayerNormPair<TypeParam> many(kRows, c), alone(1, c);
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

TYPED_TEST(LayerNormCuda, OutputMayBeInput) {
  for (const int64_t c : {33, 64, 5000}) {
    LayerNormPair<TypeParam> apart(5, c), in_place(5, c);
    apart.run_on_device();
    layernorm_forward(in_place.device_x.tensor(), in_place.device_mean.tensor(),
                      in_place.device_rstd.tensor(), in_place.device_x.tensor(), {},
                      in_place.device_gain.tensor(), in_place.device_bias.tensor(), kEpsilon,
                      in_place.stream);
    EXPECT_EQ(in_place.device_x.values().bytes(), apart.device_y.values().bytes());
  }
}

// The same bits as of the two operations, also where the sum takes the place of what is added.
TYPED_TEST(LayerNormCuda, OfASumIsTheNormOfTheSum) {
  using T = TypeParam;
  for (const int64_t c : {7, 64, 1031, 9001}) {
    LayerNormPair<T> apart(5, c, 1), together(5, c, 1);
    OnDevice<T> added(Values<T>::normal({5, c}, 6), apart.stream),
        sum(Values<T>({5, c}), apart.stream);
    residual_add(sum.tensor(), apart.device_x.tensor(), added.tensor(), {}, apart.stream);
    layernorm_forward(apart.device_y.tensor(), apart.device_mean.tensor(),
                      apart.device_rstd.tensor(), sum.tensor(), {}, apart.device_gain.tensor(),
                      apart.device_bias.tensor(), kEpsilon, apart.stream);
    apart.stream.synchronize();
    layernorm_forward(together.device_y.tensor(), together.device_mean.tensor(),
                      together.device_rstd.tensor(), together.device_x.tensor(),
                      {added.tensor(), added.tensor()}, together.device_gain.tensor(),
                      together.device_bias.tensor(), kEpsilon, together.stream);
    together.stream.synchronize();
    EXPECT_EQ(added.values().bytes(), sum.values().bytes()) << c;
    EXPECT_EQ(together.device_bytes(), apart.device_bytes()) << c;
  }
}

// More rows than blocks that there may be, so that blocks have several for each team. All values
// are small integers: sums are exact in any order.
TEST_F(CudaTest, LayerNormAddsUpManyRowsExactly) {
  constexpr int64_t kRows = 10'001, kChannels = 3;
  Values<float> x({kRows, kChannels}), dy({kRows, kChannels}), mean({kRows}), rstd({kRows}, 1);
  std::vector<double> dgain(kChannels, 10), dbias(kChannels, 20);
  for (int64_t i = 0; i < x.size(); i++) {
    x.set(i, static_cast<float>(i % 5 - 1)), dy.set(i, static_cast<float>(i % 7 - 2));
    dgain[i % kChannels] += x[i] * dy[i], dbias[i % kChannels] += dy[i];
  }
  Stream stream(Device::cuda);
  OnDevice<float> device_x(x, stream), device_dy(dy, stream), device_mean(mean, stream);
  OnDevice<float> device_rstd(rstd, stream), dx(Values<float>({kRows, kChannels}), stream);
  OnDevice<float> gain(Values<float>({kChannels}, 1), stream);
  OnDevice<float> into_gain(Values<float>({kChannels}, 10), stream);
  OnDevice<float> into_bias(Values<float>({kChannels}, 20), stream);
  layernorm_backward(dx.tensor(), into_gain.tensor(), into_bias.tensor(), device_dy.tensor(),
                     device_x.tensor(), gain.tensor(), device_mean.tensor(), device_rstd.tensor(),
                     stream);
  EXPECT_EQ(into_gain.values().doubles(), dgain);
  EXPECT_EQ(into_bias.values().doubles(), dbias);
}

TEST_F(CudaTest, LayerNormOfNoRows) {
  LayerNormPair<float> pair(0, 8);
  pair.run_on_device();
  EXPECT_EQ(pair.device_dgain.values().bytes(), pair.dgain.bytes());
}

}  // namespace
}  // namespace lockstep::kernels::tests
