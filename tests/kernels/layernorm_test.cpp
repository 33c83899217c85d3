#include "kernels/layernorm.h"

#include "kernels/dropout.h"
#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

constexpr float kEpsilon = 1e-5f;

template <class T>
struct LayerNormCase {
  int64_t rows, channels;
  Values<T> x, gain, bias, dy, y, dx;
  Values<float> mean, rstd, dgain, dbias;

  LayerNormCase(int64_t n, int64_t c)
      : rows(n),
        channels(c),
        x(Values<T>::normal({n, c}, 1, 0.5f, 2.0f)),
        gain(Values<T>::normal({c}, 2, 1.0f, 0.1f)),
        bias(Values<T>::normal({c}, 3, 0.0f, 0.5f)),
        dy(Values<T>::normal({n, c}, 4)),
        y({n, c}),
        dx({n, c}, 2.0f),
        mean({n}),
        rstd({n}),
        dgain({c}, 10.0f),
        dbias({c}, 20.0f) {}
  void forward() {
    Stream stream;
    layernorm_forward(y.tensor(), mean.tensor(), rstd.tensor(), x.tensor(), {}, gain.tensor(),
                      bias.tensor(), kEpsilon, stream);
  }
  void backward() {
    Stream stream;
    layernorm_backward(dx.tensor(), dgain.tensor(), dbias.tensor(), dy.tensor(), x.tensor(),
                       gain.tensor(), mean.tensor(), rstd.tensor(), stream);
  }
};

// The definition, in float64, of one row.
struct Definition {
  double mean = 0, magnitude = 0, rstd = 0;
  explicit Definition(const std::vector<double>& x) {
    const auto count = static_cast<double>(x.size());
    for (double v : x) mean += v / count, magnitude += std::abs(v) / count;
    double variance = 0;
    for (double v : x) variance += (v - mean) * (v - mean) / count;
    rstd = 1 / std::sqrt(variance + double{kEpsilon});
  }
};

template <class T>
class LayerNorm : public testing::Test {};
TYPED_TEST_SUITE(LayerNorm, FloatTypes);

TYPED_TEST(LayerNorm, ForwardIsTheDefinition) {
  for (const auto [n, c] : kSizes) {
    LayerNormCase<TypeParam> test(n, c);
    test.forward();
    for (int64_t row = 0; row < n; row++) {
      const Definition want(test.x.doubles(row * c, (row + 1) * c));
      // The mean's error shifts the row; the variance feels it in second order, and its own sum's
      // error is halved by the root.
      const double mean_error = row_sum_error(c) * want.magnitude;
      const double rstd_error =
          row_sum_error(c) / 2 + 4 * kRounding + 0.5 * std::pow(mean_error * want.rstd, 2);
      ASSERT_NEAR(test.mean[row], want.mean, mean_error);
      ASSERT_NEAR(test.rstd[row], want.rstd, want.rstd * rstd_error);
      for (int64_t k = 0; k < c; k++) {
        const double h = (test.x[row * c + k] - want.mean) * want.rstd;
        const double y = h * test.gain[k] + test.bias[k];
        const double error =
            std::abs(test.gain[k]) * (mean_error * want.rstd + std::abs(h) * rstd_error) +
            4 * kRounding * (std::abs(h * test.gain[k]) + std::abs(y));
        ASSERT_NEAR(test.y[row * c + k], y, error + storage_error<TypeParam>(std::abs(y) + error))
            << n << " x " << c << ", row " << row << " channel " << k;
      }
    }
  }
}

TYPED_TEST(LayerNorm, BackwardAddsTheFormula) {
  for (const auto [n, c] : kSizes) {
    LayerNormCase<TypeParam> test(n, c);
    test.forward();
    test.backward();
    std::vector<double> dgain(c, 10), dbias(c, 20), dgain_size(c, 10), dbias_size(c, 20);
    for (int64_t row = 0; row < n; row++) {
      const double mean = test.mean[row], rstd = test.rstd[row];
      double mean_g = 0, mean_gh = 0, size_g = 0, size_gh = 0;
      const auto h = [&](int64_t k) { return (test.x[row * c + k] - mean) * rstd; };
      const auto g = [&](int64_t k) { return test.dy[row * c + k] * test.gain[k]; };
      for (int64_t k = 0; k < c; k++) {
        mean_g += g(k) / static_cast<double>(c), size_g += std::abs(g(k)) / static_cast<double>(c);
        mean_gh += g(k) * h(k) / static_cast<double>(c);
        size_gh += std::abs(g(k) * h(k)) / static_cast<double>(c);
        dgain[k] += test.dy[row * c + k] * h(k), dbias[k] += test.dy[row * c + k];
        dgain_size[k] += std::abs(test.dy[row * c + k] * h(k));
        dbias_size[k] += std::abs(test.dy[row * c + k]);
      }
      for (int64_t k = 0; k < c; k++) {
        const double want = 2 + rstd * (g(k) - mean_g - h(k) * mean_gh);
        // The sums, and eight roundings of each part.
        const double error = (row_sum_error(c) + 8 * kRounding) *
                             (2 + rstd * (std::abs(g(k)) + size_g + std::abs(h(k)) * size_gh));
        ASSERT_NEAR(test.dx[row * c + k], want,
                    error + storage_error<TypeParam>(std::abs(want) + error))
            << n << " x " << c << ", row " << row << " channel " << k;
      }
    }
    for (int64_t k = 0; k < c; k++) {  // at most 64 additions in a block, two blocks, four products
      ASSERT_NEAR(test.dgain[k], dgain[k], 70 * kRounding * dgain_size[k]);
      ASSERT_NEAR(test.dbias[k], dbias[k], 66 * kRounding * dbias_size[k]);
    }
  }
}

TEST(LayerNormBackward, IsTheDerivativeOfTheDefinition) {
  for (const auto [n, c] : {Size{1, 2}, {3, 7}, {4, 33}}) {
    LayerNormCase<float> test(n, c);
    test.forward();
    test.backward();
    const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gain,
                          const std::vector<double>& bias) {
      double sum = 0;
      for (int64_t row = 0; row < n; row++) {
        const Definition d({x.begin() + row * c, x.begin() + (row + 1) * c});
        for (int64_t k = 0; k < c; k++) {
          sum += ((x[row * c + k] - d.mean) * d.rstd * gain[k] + bias[k]) * test.dy[row * c + k];
        }
      }
      return sum;
    };
    const auto x = test.x.doubles(), gain = test.gain.doubles(), bias = test.bias.doubles();
    // fp32 of numbers of order 10, of which the starting value takes its part.
    constexpr double kTolerance = 1e-5;
    for (int64_t i = 0; i < n * c; i++) {
      EXPECT_NEAR(test.dx[i] - 2, derivative(x, i, [&](auto& v) { return loss(v, gain, bias); }),
                  kTolerance);
    }
    for (int64_t k = 0; k < c; k++) {
      EXPECT_NEAR(test.dgain[k] - 10,
                  derivative(gain, k, [&](auto& v) { return loss(x, v, bias); }), kTolerance);
      EXPECT_NEAR(test.dbias[k] - 20,
                  derivative(bias, k, [&](auto& v) { return loss(x, gain, v); }), kTolerance);
    }
  }
}

TYPED_TEST(LayerNorm, BitsDoNotDependOnThreadsOrOtherRows) {
  expect_same_bits_for_any_threads([] {
    LayerNormCase<TypeParam> test(200, 96);
    test.forward();
    test.backward();
    return test.y.bytes() + test.mean.bytes() + test.rstd.bytes() + test.dx.bytes() +
           test.dgain.bytes() + test.dbias.bytes();
  });
  constexpr int64_t kRow = 150, kChannels = 77;
  LayerNormCase<TypeParam> many(200, kChannels), alone(1, kChannels);
  for (int64_t k = 0; k < kChannels; k++) {
    alone.x.set(k, static_cast<float>(many.x[kRow * kChannels + k]));
    alone.dy.set(k, static_cast<float>(many.dy[kRow * kChannels + k]));
  }
  for (auto* test : {&many, &alone}) test->forward(), test->backward();
  EXPECT_EQ(alone.y.bytes(), many.y.bytes(kRow * kChannels, (kRow + 1) * kChannels));
  EXPECT_EQ(alone.dx.bytes(), many.dx.bytes(kRow * kChannels, (kRow + 1) * kChannels));
}

TYPED_TEST(LayerNorm, OutputMayBeInput) {
  LayerNormCase<TypeParam> test(5, 33), in_place(5, 33);
  test.forward();
  Stream stream;
  layernorm_forward(in_place.x.tensor(), in_place.mean.tensor(), in_place.rstd.tensor(),
                    in_place.x.tensor(), {}, in_place.gain.tensor(), in_place.bias.tensor(),
                    kEpsilon, stream);
  EXPECT_EQ(in_place.x.bytes(), test.y.bytes());
}

// The same bits as of the two operations, also where the sum takes the place of what is added.
TYPED_TEST(LayerNorm, OfASumIsTheNormOfTheSum) {
  LayerNormCase<TypeParam> apart(35, 33), together(35, 33);
  Stream stream;
  auto added = Values<TypeParam>::normal({35, 33}, 6);
  residual_add(apart.x.tensor(), apart.x.tensor(), added.tensor(), {}, stream);
  apart.forward();
  layernorm_forward(together.y.tensor(), together.mean.tensor(), together.rstd.tensor(),
                    together.x.tensor(), {added.tensor(), added.tensor()}, together.gain.tensor(),
                    together.bias.tensor(), kEpsilon, stream);
  EXPECT_EQ(added.bytes(), apart.x.bytes());
  EXPECT_EQ(together.y.bytes() + together.mean.bytes() + together.rstd.bytes(),
            apart.y.bytes() + apart.mean.bytes() + apart.rstd.bytes());
}

TYPED_TEST(LayerNorm, NonFiniteValuesSpoilTheirRowAlone) {
  for (float bad : {kNan, kInfinity, -kInfinity}) {
    LayerNormCase<TypeParam> test(3, 20);
    test.x.set(20 + 17, bad);
    test.forward();
    test.backward();
    for (int64_t i = 0; i < 60; i++) {
      EXPECT_EQ(std::isnan(test.y[i]), i / 20 == 1) << i;
      EXPECT_EQ(std::isnan(test.dx[i]), i / 20 == 1) << i;
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
