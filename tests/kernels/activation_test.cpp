#include "kernels/activation.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

constexpr Activation kAll[] = {Activation::relu, Activation::sigmoid,   Activation::tanh,
                               Activation::gelu, Activation::gelu_tanh, Activation::silu};

// f and its derivative, in float64.
struct Exact {
  double value, slope;
};
Exact exact(Activation activation, double x) {
  const double sigmoid = 1 / (1 + std::exp(-x));
  const double cumulative = 0.5 * std::erfc(-x / std::sqrt(2.0));
  const double k = std::sqrt(2 / M_PI), u = k * (x + 0.044715 * x * x * x);
  switch (activation) {
    case Activation::relu:
      return {x > 0 ? x : 0, x > 0 ? 1.0 : 0.0};
    case Activation::sigmoid:
      return {sigmoid, sigmoid * (1 - sigmoid)};
    case Activation::tanh:
      return {std::tanh(x), 1 / (std::cosh(x) * std::cosh(x))};
    case Activation::gelu:
      return {x * cumulative, cumulative + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI)};
    case Activation::gelu_tanh:
      return {x * (1 + std::tanh(u)) / 2,
              (1 + std::tanh(u)) / 2 +
                  x / 2 * k * (1 + 3 * 0.044715 * x * x) / (std::cosh(u) * std::cosh(u))};
    case Activation::silu:
      return {x * sigmoid, sigmoid + x * sigmoid * (1 - sigmoid)};
  }
  return {};
}

// Functions of math.h err by up to 3 ulp and a handful of roundings follow; arguments of order 10
// in an exponent multiply their own rounding. All against values of at most max(1, |x|).
double error(double x, double magnitude) {
  return 16 * kRounding * std::max({1.0, std::abs(x), magnitude});
}

template <class T>
class ActivationOf : public testing::Test {};
TYPED_TEST_SUITE(ActivationOf, FloatTypes);

TYPED_TEST(ActivationOf, ForwardAndBackwardAreTheDefinition) {
  using T = TypeParam;
  Stream stream;
  for (Activation activation : kAll) {
    for (const auto [n, c] : kSizes) {
      auto x = Values<T>::normal({n, c}, 1, 0, 3), dy = Values<T>::normal({n, c}, 2);
      Values<T> y({n, c}), dx({n, c});
      activation_forward(y.tensor(), x.tensor(), activation, stream);
      activation_backward(dx.tensor(), dy.tensor(), x.tensor(), activation, stream);
      for (int64_t i = 0; i < n * c; i++) {
        const auto [value, slope] = exact(activation, x[i]);
        ASSERT_NEAR(y[i], value, error(x[i], 1) + storage_error<T>(value))
            << name(activation) << " of " << x[i];
        ASSERT_NEAR(dx[i], dy[i] * slope,
                    std::abs(dy[i]) * error(x[i], 1) + 1.01 * storage_error<T>(dy[i] * slope))
            << name(activation) << "' of " << x[i];
      }
    }
  }
}

TYPED_TEST(ActivationOf, GatedForwardAndBackwardAreTheDefinition) {
  using T = TypeParam;
  Stream stream;
  for (Activation activation : kAll) {
    for (const auto [n, c] : kSizes) {
      auto gate_up = Values<T>::normal({n, 2 * c}, 1, 0, 2), dy = Values<T>::normal({n, c}, 2);
      Values<T> y({n, c}), dgate_up({n, 2 * c});
      gated_activation_forward(y.tensor(), gate_up.tensor(), activation, stream);
      gated_activation_backward(dgate_up.tensor(), dy.tensor(), gate_up.tensor(), activation,
                                stream);
      for (int64_t i = 0; i < n * c; i++) {
        const int64_t at = i / c * 2 * c + i % c;
        const double gate = gate_up[at], up = gate_up[at + c];
        const auto [value, slope] = exact(activation, gate);
        const double dgate = dy[i] * up * slope, dup = dy[i] * value;
        ASSERT_NEAR(y[i], value * up,
                    std::abs(up) * error(gate, 1) + 1.01 * storage_error<T>(value * up));
        ASSERT_NEAR(dgate_up[at], dgate,
                    std::abs(dy[i] * up) * error(gate, 1) + 1.01 * storage_error<T>(dgate));
        ASSERT_NEAR(dgate_up[at + c], dup,
                    std::abs(dy[i]) * error(gate, 1) + 1.01 * storage_error<T>(dup));
      }
    }
  }
}

// Values of PyTorch's documentation would be rounded; these are of the definitions, to ten places.
TEST(Activation, Table) {
  struct Row {
    Activation activation;
    float x, value, slope;
  };
  const Row rows[] = {
      {Activation::relu, -2, 0, 0},
      {Activation::relu, 0, 0, 0},
      {Activation::relu, 3, 3, 1},
      {Activation::sigmoid, 0, 0.5f, 0.25f},
      {Activation::sigmoid, 2, 0.8807970780f, 0.1049935854f},
      {Activation::sigmoid, -2, 0.1192029220f, 0.1049935854f},
      {Activation::tanh, 0, 0, 1},
      {Activation::tanh, 1, 0.7615941560f, 0.4199743416f},
      {Activation::tanh, -1, -0.7615941560f, 0.4199743416f},
      {Activation::gelu, 0, 0, 0.5f},
      {Activation::gelu, 1, 0.8413447461f, 1.0833154706f},
      {Activation::gelu, -1, -0.1586552539f, -0.0833154706f},
      {Activation::gelu_tanh, 0, 0, 0.5f},
      {Activation::gelu_tanh, 1, 0.8411919906f, 1.0829640838f},
      {Activation::gelu_tanh, -1, -0.1588080094f, -0.0829640838f},
      {Activation::silu, 0, 0, 0.5f},
      {Activation::silu, 1, 0.7310585786f, 0.9276705118f},
      {Activation::silu, -1, -0.2689414214f, 0.0723294882f},
  };
  Stream stream;
  for (const Row& row : rows) {
    Values<float> x({1}, row.x), y({1}), dy({1}, 1), dx({1});
    activation_forward(y.tensor(), x.tensor(), row.activation, stream);
    activation_backward(dx.tensor(), dy.tensor(), x.tensor(), row.activation, stream);
    EXPECT_NEAR(y[0], row.value, 4 * kRounding) << name(row.activation) << " of " << row.x;
    EXPECT_NEAR(dx[0], row.slope, 4 * kRounding) << name(row.activation) << "' of " << row.x;
  }
}

TEST(Activation, SlopeIsTheDerivativeOfTheValue) {
  for (Activation activation : kAll) {
    for (double x = -6.05; x < 6; x += 0.1) {  // not at relu's kink
      EXPECT_NEAR(exact(activation, x).slope,
                  derivative({x}, 0, [&](auto& v) { return exact(activation, v[0]).value; }), 1e-8);
    }
  }
}

TEST(Activation, FarArgumentsGiveLimitsAndNanStays) {
  Stream stream;
  for (Activation activation : kAll) {
    for (float far : {30.0f, 200.0f, 1e4f, 1e19f, 1e30f, 3e38f}) {
      for (float x : {far, -far}) {
        Values<float> in({1}, x), y({1}), dy({1}, 1), dx({1});
        activation_forward(y.tensor(), in.tensor(), activation, stream);
        activation_backward(dx.tensor(), dy.tensor(), in.tensor(), activation, stream);
        const bool grows = activation != Activation::sigmoid && activation != Activation::tanh;
        const double low = activation == Activation::tanh ? -1 : 0;
        EXPECT_NEAR(y[0], x < 0 ? low : grows ? x : 1, 1e-11) << name(activation) << " of " << x;
        EXPECT_NEAR(dx[0], x > 0 && grows ? 1 : 0, 3e-12) << name(activation) << "' of " << x;
      }
    }
    const bool grows = activation != Activation::sigmoid && activation != Activation::tanh;
    for (float x : {kInfinity, -kInfinity}) {
      Values<float> in({1}, x), y({1}), dy({1}, 1), dx({1});
      activation_forward(y.tensor(), in.tensor(), activation, stream);
      activation_backward(dx.tensor(), dy.tensor(), in.tensor(), activation, stream);
      if (x > 0) {
        EXPECT_EQ(y[0], grows ? x : 1) << name(activation);
      } else if (grows && activation != Activation::relu) {
        EXPECT_TRUE(std::isnan(y[0])) << name(activation);
      } else {
        EXPECT_EQ(y[0], activation == Activation::tanh ? -1 : 0) << name(activation);
      }
      EXPECT_EQ(dx[0], x > 0 && grows ? 1 : 0) << name(activation);
    }
    Values<float> in({1}, kNan), y({1}), dy({1}, kNan), dx({1});
    activation_forward(y.tensor(), in.tensor(), activation, stream);
    EXPECT_TRUE(std::isnan(y[0])) << name(activation);
    for (float x : {-1.0f, 1.0f}) {
      in.set(0, x);
      activation_backward(dx.tensor(), dy.tensor(), in.tensor(), activation, stream);
      EXPECT_TRUE(std::isnan(dx[0])) << name(activation);
    }
  }
}

TYPED_TEST(ActivationOf, OutputMayBeInput) {
  using T = TypeParam;
  Stream stream;
  for (Activation activation : kAll) {
    auto x = Values<T>::normal({3, 38}, 1), dy = Values<T>::normal({3, 38}, 2);
    Values<T> y({3, 38}), dx({3, 38}), gated({3, 19}), dgate_up({3, 38});
    auto gated_dy = Values<T>::normal({3, 19}, 3);
    activation_forward(y.tensor(), x.tensor(), activation, stream);
    activation_backward(dx.tensor(), dy.tensor(), x.tensor(), activation, stream);
    gated_activation_backward(dgate_up.tensor(), gated_dy.tensor(), x.tensor(), activation, stream);

    auto in_place = x;
    activation_forward(in_place.tensor(), in_place.tensor(), activation, stream);
    EXPECT_EQ(in_place.bytes(), y.bytes());
    activation_backward(dy.tensor(), dy.tensor(), x.tensor(), activation, stream);
    EXPECT_EQ(dy.bytes(), dx.bytes());
    gated_activation_backward(x.tensor(), gated_dy.tensor(), x.tensor(), activation, stream);
    EXPECT_EQ(x.bytes(), dgate_up.bytes());
  }
}

TYPED_TEST(ActivationOf, BitsDoNotDependOnThreadsOrPlace) {
  using T = TypeParam;
  Stream stream;
  for (Activation activation : kAll) {
    expect_same_bits_for_any_threads([&] {
      auto x = Values<T>::normal({50, 1001}, 1);
      Values<T> y({50, 1001});
      activation_forward(y.tensor(), x.tensor(), activation, stream);
      activation_backward(x.tensor(), y.tensor(), x.tensor(), activation, stream);
      return y.bytes() + x.bytes();
    });
    // One value at every offset from the start of a vector.
    Values<T> x({70}, 0.77f), y({70}), one({1}, 0.77f), alone({1});
    activation_forward(y.tensor(), x.tensor(), activation, stream);
    activation_forward(alone.tensor(), one.tensor(), activation, stream);
    for (int64_t i = 0; i < 70; i++) EXPECT_EQ(y.bytes(i, i + 1), alone.bytes()) << i;
  }
}

TEST(Activation, NamesAreFound) {
  for (Activation activation : kAll) {
    EXPECT_EQ(activation_from_name(name(activation)), activation);
  }
  EXPECT_EQ(activation_from_name("swish"), std::nullopt);
}

}  // namespace
}  // namespace lockstep::kernels::tests
