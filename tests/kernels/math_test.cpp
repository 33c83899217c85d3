#include "kernels/cpu/math.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

namespace math = cpu::math;

using VectorFunction = void (*)(const float*, float*, int64_t);

// Each function over a run of values, compiled for every kind of machine that this one can be.
#define RUN(name, target, expression)                                         \
  __attribute__((target)) void name(const float* in, float* out, int64_t n) { \
    for (int64_t i = 0; i < n; i++) {                                         \
      const float x = in[i];                                                  \
      out[i] = expression;                                                    \
    }                                                                         \
  }
#if defined(__x86_64__)
#define VECTOR_FUNCTION(name, expression)                                  \
  RUN(name##_baseline, target("arch=x86-64"), expression)                  \
  RUN(name##_avx2, target("arch=x86-64-v3"), expression)                   \
  RUN(name##_avx512, target("arch=x86-64-v4"), expression)                 \
  std::vector<VectorFunction> name() {                                     \
    std::vector<VectorFunction> all = {name##_baseline};                   \
    if (__builtin_cpu_supports("x86-64-v3")) all.push_back(name##_avx2);   \
    if (__builtin_cpu_supports("x86-64-v4")) all.push_back(name##_avx512); \
    return all;                                                            \
  }
#else
#define VECTOR_FUNCTION(name, expression) \
  RUN(name##_baseline, used, expression)  \
  std::vector<VectorFunction> name() { return {name##_baseline}; }
#endif
VECTOR_FUNCTION(vector_exp, math::exp(x))
VECTOR_FUNCTION(vector_exp_of_negative, math::exp_of_negative(x > 88.0f ? 88.0f : x))
VECTOR_FUNCTION(vector_tanh, math::tanh(x))
VECTOR_FUNCTION(vector_sigmoid, math::sigmoid(x))
VECTOR_FUNCTION(vector_erf, math::erf(x))
VECTOR_FUNCTION(vector_cumulative, math::normal(x).cumulative)
VECTOR_FUNCTION(vector_density, math::normal(x).density)

// |got - want| in units of fp32's last place at `want`; infinite for a wrong special value.
double ulps(float got, double want) {
  if (std::isnan(want) || std::isnan(got)) {
    return std::isnan(want) && std::isnan(got) ? 0.0 : kInfinity;
  }
  const auto nearest = static_cast<float>(want);
  if (std::isinf(nearest) || std::isinf(got)) return got == nearest ? 0.0 : kInfinity;
  int exponent;
  std::frexp(std::abs(want), &exponent);
  return std::abs(got - want) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

// Calls visit(x, f(x)) for every special value and about 2^20 others, of every exponent.
template <class Visit>
void for_all_magnitudes(const std::vector<VectorFunction>& variants, Visit visit) {
  std::vector<float> x = {0.0f, -0.0f, kInfinity, -kInfinity, kNan, -kNan};
  std::mt19937 random(1);
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 4096) {
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits + random() % 4096)));
  }
  // Where the functions bend: densely.
  for (int i = 0; i < 100003; i++) x.push_back(-20.0f + 40.0f * static_cast<float>(i) / 100003);
  std::vector<float> y(x.size());
  for (VectorFunction f : variants) {
    f(x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); i++) visit(x[i], y[i]);
  }
}

void expect_within(double bound_ulps, const std::vector<VectorFunction>& f,
                   double (*exact)(double)) {
  double worst = 0;
  float worst_x = 0;
  for_all_magnitudes(f, [&](float x, float y) {
    const double error = ulps(y, exact(x));
    if (!(error <= worst)) worst = error, worst_x = x;
  });
  EXPECT_LE(worst, bound_ulps) << "at " << worst_x;
  testing::Test::RecordProperty("worst_ulps", std::to_string(worst));
}

TEST(Math, ExpIsWithinItsBound) {
  expect_within(1.5, vector_exp(), [](double x) { return std::exp(x); });
}
TEST(Math, ExpOfNegativeIsWithinItsBound) {
  expect_within(1.5, vector_exp_of_negative(),
                [](double x) { return x < -87 ? 0 : std::exp(std::min(x, 88.0)); });
}
TEST(Math, TanhIsWithinItsBound) {
  expect_within(3, vector_tanh(), [](double x) { return std::tanh(x); });
}
TEST(Math, SigmoidIsWithinItsBound) {
  expect_within(3, vector_sigmoid(), [](double x) { return 1 / (1 + std::exp(-x)); });
}
TEST(Math, ErfIsWithinItsBound) {
  expect_within(2, vector_erf(), [](double x) { return std::erf(x); });
}

TEST(Math, NormalDistributionIsWithinItsBounds) {
  const auto check = [](float x, float got, double want) {
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(got));
      return;
    }
    ASSERT_LE(std::abs(got - want), 0x1p-22) << x;
    // Below the normal range half a spacing is all that can be had.
    const double finite = std::min(double{x} * x, 400.0);
    ASSERT_LE(std::abs(got - want), want * 0x1p-21 * (1 + finite / 4) + 0x1p-148) << x;
  };
  for_all_magnitudes(vector_cumulative(), [&](float x, float y) {
    check(x, y, 0.5 * std::erfc(-double{x} / std::sqrt(2.0)));
  });
  for_all_magnitudes(vector_density(), [&](float x, float y) {
    check(x, y, std::exp(-0.5 * double{x} * x) / std::sqrt(2 * M_PI));
  });
}

TEST(Math, SpecialValues) {
  EXPECT_EQ(math::exp(kInfinity), kInfinity);
  EXPECT_EQ(math::exp(-kInfinity), 0.0f);
  EXPECT_EQ(math::exp(0.0f), 1.0f);
  EXPECT_EQ(math::exp(-0.0f), 1.0f);
  EXPECT_EQ(math::exp(88.8f), kInfinity);
  EXPECT_EQ(math::exp(-103.9f), 0x1p-149f);  // the smallest subnormal
  EXPECT_EQ(math::exp(-104.0f), 0.0f);
  EXPECT_EQ(math::tanh(kInfinity), 1.0f);
  EXPECT_EQ(math::tanh(-kInfinity), -1.0f);
  EXPECT_TRUE(std::signbit(math::tanh(-0.0f)));
  EXPECT_EQ(math::sigmoid(kInfinity), 1.0f);
  EXPECT_EQ(math::sigmoid(-kInfinity), 0.0f);
  EXPECT_EQ(math::erf(kInfinity), 1.0f);
  EXPECT_EQ(math::erf(-kInfinity), -1.0f);
}

}  // namespace
}  // namespace lockstep::kernels::tests
