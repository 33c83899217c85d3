#include "kernels/rmsnorm.h"

#include "kernels/dropout.h"
#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

constexpr float kEpsilon = 1e-5f;

template <class T>
struct RmsNormCase {
  int64_t rows, channels;
  Values<T> x, gain, dy, y, dx;
  Values<float> inv_rms, dgain;

  RmsNormCase(int64_t n, int64_t c)
      : rows(n),
        channels(c),
        x(Values<T>::normal({n, c}, 1, 0.5f, 2.0f)),
        gain(Values<T>::normal({c}, 2, 1.0f, 0.1f)),
        dy(Values<T>::normal({n, c}, 3)),
        y({n, c}),
        dx({n, c}, 2.0f),
        inv_rms({n}),
        dgain({c}, 10.0f) {}
  void forward() {
    Stream stream;
    rmsnorm_forward(y.tensor(), inv_rms.tensor(), x.tensor(), {}, gain.tensor(), kEpsilon, stream);
  }
  void backward() {
    Stream stream;
    rmsnorm_backward(dx.tensor(), dgain.tensor(), dy.tensor(), x.tensor(), gain.tensor(),
                     inv_rms.tensor(), stream);
  }
};

// The definition, in float64.
double inverse_rms(const std::vector<double>& x) {
  double mean_square = 0;
  for (double v : x) mean_square += v * v / static_cast<double>(x.size());
  return 1 / std::sqrt(mean_square + double{kEpsilon});
}

template <class T>
class RmsNorm : public testing::Test {};
TYPED_TEST_SUITE(RmsNorm, FloatTypes);

TYPED_TEST(RmsNorm, ForwardIsTheDefinition) {
  for (const auto [n, c] : kSizes) {
    RmsNormCase<TypeParam> test(n, c);
    test.forward();
    // All terms of the sum are positive; the root halves its error.
    const double error = row_sum_error(c) / 2 + 4 * kRounding;
    for (int64_t row = 0; row < n; row++) {
      const double r = inverse_rms(test.x.doubles(row * c, (row + 1) * c));
      ASSERT_NEAR(test.inv_rms[row], r, r * error);
      for (int64_t k = 0; k < c; k++) {
        const double want = test.x[row * c + k] * r * test.gain[k];
        ASSERT_NEAR(
            test.y[row * c + k], want,
            std::abs(want) * (error + 2 * kRounding) + 1.01 * storage_error<TypeParam>(want))
            << n << " x " << c << ", row " << row << " channel " << k;
      }
    }
  }
}

TYPED_TEST(RmsNorm, BackwardAddsTheFormula) {
  for (const auto [n, c] : kSizes) {
    RmsNormCase<TypeParam> test(n, c);
    test.forward();
    test.backward();
    std::vector<double> dgain(c, 10), dgain_size(c, 10);
    for (int64_t row = 0; row < n; row++) {
      const double r = test.inv_rms[row];
      double mean = 0, size = 0;
      const auto h = [&](int64_t k) { return test.x[row * c + k] * r; };
      const auto g = [&](int64_t k) { return test.dy[row * c + k] * test.gain[k]; };
      for (int64_t k = 0; k < c; k++) {
        mean += g(k) * h(k) / static_cast<double>(c);
        size += std::abs(g(k) * h(k)) / static_cast<double>(c);
        dgain[k] += test.dy[row * c + k] * h(k);
        dgain_size[k] += std::abs(test.dy[row * c + k] * h(k));
      }
      for (int64_t k = 0; k < c; k++) {
        const double want = 2 + r * (g(k) - h(k) * mean);
        const double error =
            (row_sum_error(c) + 8 * kRounding) * (2 + r * (std::abs(g(k)) + std::abs(h(k)) * size));
        ASSERT_NEAR(test.dx[row * c + k], want,
                    error + storage_error<TypeParam>(std::abs(want) + error))
            << n << " x " << c << ", row " << row << " channel " << k;
      }
    }
    for (int64_t k = 0; k < c; k++) {  // at most 64 additions in a block, two blocks, two products
      ASSERT_NEAR(test.dgain[k], dgain[k], 70 * kRounding * dgain_size[k]);
    }
  }
}

TEST(RmsNormBackward, IsTheDerivativeOfTheDefinition) {
  for (const auto [n, c] : {Size{1, 1}, {3, 7}, {4, 33}}) {
    RmsNormCase<float> test(n, c);
    test.forward();
    test.backward();
    const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gain) {
      double sum = 0;
      for (int64_t row = 0; row < n; row++) {
        const double r = inverse_rms({x.begin() + row * c, x.begin() + (row + 1) * c});
        for (int64_t k = 0; k < c; k++) {
          sum += x[row * c + k] * r * gain[k] * test.dy[row * c + k];
        }
      }
      return sum;
    };
    const auto x = test.x.doubles(), gain = test.gain.doubles();
    // fp32 of numbers of order 10, of which the starting value takes its part.
    constexpr double kTolerance = 1e-5;
    for (int64_t i = 0; i < n * c; i++) {
      EXPECT_NEAR(test.dx[i] - 2, derivative(x, i, [&](auto& v) { return loss(v, gain); }),
                  kTolerance);
    }
    for (int64_t k = 0; k < c; k++) {
      EXPECT_NEAR(test.dgain[k] - 10, derivative(gain, k, [&](auto& v) { return loss(x, v); }),
                  kTolerance);
    }
  }
}

TYPED_TEST(RmsNorm, BitsDoNotDependOnThreadsOrOtherRows) {
  expect_same_bits_for_any_threads([] {
    RmsNormCase<TypeParam> test(200, 96);
    test.forward();
    test.backward();
    return test.y.bytes() + test.inv_rms.bytes() + test.dx.bytes() + test.dgain.bytes();
  });
  constexpr int64_t kRow = 150, kChannels = 77;
  RmsNormCase<TypeParam> many(200, kChannels), alone(1, kChannels);
  for (int64_t k = 0; k < kChannels; k++) {
    alone.x.set(k, static_cast<float>(many.x[kRow * kChannels + k]));
    alone.dy.set(k, static_cast<float>(many.dy[kRow * kChannels + k]));
  }
  for (auto* test : {&many, &alone}) test->forward(), test->backward();
  EXPECT_EQ(alone.y.bytes(), many.y.bytes(kRow * kChannels, (kRow + 1) * kChannels));
  EXPECT_EQ(alone.dx.bytes(), many.dx.bytes(kRow * kChannels, (kRow + 1) * kChannels));
}

TYPED_TEST(RmsNorm, OutputMayBeInput) {
  RmsNormCase<TypeParam> test(5, 33), in_place(5, 33);
  test.forward();
  Stream stream;
  rmsnorm_forward(in_place.x.tensor(), in_place.inv_rms.tensor(), in_place.x.tensor(), {},
                  in_place.gain.tensor(), kEpsilon, stream);
  EXPECT_EQ(in_place.x.bytes(), test.y.bytes());
}

// The same bits as of the two operations, also where the sum takes the place of what is added.
TYPED_TEST(RmsNorm, OfASumIsTheNormOfTheSum) {
  RmsNormCase<TypeParam> apart(35, 33), together(35, 33);
  Stream stream;
  auto added = Values<TypeParam>::normal({35, 33}, 6);
  residual_add(apart.x.tensor(), apart.x.tensor(), added.tensor(), {}, stream);
  apart.forward();
  rmsnorm_forward(together.y.tensor(), together.inv_rms.tensor(), together.x.tensor(),
                  {added.tensor(), added.tensor()}, together.gain.tensor(), kEpsilon, stream);
  EXPECT_EQ(added.bytes(), apart.x.bytes());
  EXPECT_EQ(together.y.bytes() + together.inv_rms.bytes(), apart.y.bytes() + apart.inv_rms.bytes());
}

TYPED_TEST(RmsNorm, NonFiniteValuesSpoilTheirRowAlone) {
  for (float bad : {kNan, kInfinity, -kInfinity}) {
    RmsNormCase<TypeParam> test(3, 20);
    test.x.set(20 + 17, bad);
    test.forward();
    test.backward();
    EXPECT_TRUE(std::isnan(test.y[20 + 17]));
    for (int64_t i = 0; i < 60; i++) {
      // An infinite norm leaves zeros; NaN spoils every channel.
      EXPECT_EQ(std::isnan(test.y[i]), i / 20 == 1 && (std::isnan(bad) || i == 37)) << i;
      EXPECT_EQ(std::isnan(test.dx[i]), i / 20 == 1) << i;
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
