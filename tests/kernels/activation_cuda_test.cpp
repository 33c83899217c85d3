#include "kernels/activation.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

constexpr Activation kAll[] = {Activation::relu, Activation::sigmoid,   Activation::tanh,
                               Activation::gelu, Activation::gelu_tanh, Activation::silu};

// The CPU errs by up to 16 roundings of values of at most max(1, |x|) (activation_test.cpp), and so
// does the device: functions of 4 ulp or less in the same formulas.
double error(double x) { return 2 * 16 * kRounding * std::max(1.0, std::abs(x)); }

template <class T>
class ActivationCuda : public CudaTest {};
TYPED_TEST_SUITE(ActivationCuda, FloatTypes);

TYPED_TEST(ActivationCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  for (const Activation activation : kAll) {
    for (const auto [n, c] : kSizes) {
      for (const int64_t shift : {0, 1}) {
        auto x = Values<T>::normal({n, c}, 1, 0, 3), dy = Values<T>::normal({n, c}, 2);
        Values<T> y({n, c}), dx({n, c});
        OnDevice<T> device_x(x, stream, shift), device_dy(dy, stream);
        OnDevice<T> device_y(y, stream, shift), device_dx(dx, stream);
        activation_forward(y.tensor(), x.tensor(), activation, host);
        activation_forward(device_y.tensor(), device_x.tensor(), activation, stream);
        activation_backward(dx.tensor(), dy.tensor(), x.tensor(), activation, host);
        activation_backward(device_dx.tensor(), device_dy.tensor(), device_x.tensor(), activation,
                            stream);
        const Values<T>&got_y = device_y.values(), &got_dx = device_dx.values();
        for (int64_t i = 0; i < n * c; i++) {
          ASSERT_NEAR(got_y[i], y[i], error(x[i]) + 2.02 * storage_error<T>(y[i]))
              << name(activation) << " of " << x[i];
          ASSERT_NEAR(got_dx[i], dx[i],
                      std::abs(dy[i]) * error(x[i]) + 2.02 * storage_error<T>(dx[i]))
              << name(activation) << "' of " << x[i];
        }
      }
    }
  }
}

TYPED_TEST(ActivationCuda, GatedAgreesWithTheCpu) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  for (const Activation activation : kAll) {
    for (const auto [n, c] : kSizes) {
      for (const int64_t shift : {0, 1}) {
        auto gate_up = Values<T>::normal({n, 2 * c}, 1, 0, 2), dy = Values<T>::normal({n, c}, 2);
        Values<T> y({n, c}), dgate_up({n, 2 * c});
        OnDevice<T> device_gate_up(gate_up, stream, shift), device_dy(dy, stream);
        OnDevice<T> device_y(y, stream), device_dgate_up(dgate_up, stream, shift);
        gated_activation_forward(y.tensor(), gate_up.tensor(), activation, host);
        gated_activation_forward(device_y.tensor(), device_gate_up.tensor(), activation, stream);
        gated_activation_backward(dgate_up.tensor(), dy.tensor(), gate_up.tensor(), activation,
                                  host);
        gated_activation_backward(device_dgate_up.tensor(), device_dy.tensor(),
                                  device_gate_up.tensor(), activation, stream);
        const Values<T>&got_y = device_y.values(), &got = device_dgate_up.values();
        for (int64_t i = 0; i < n * c; i++) {
          const int64_t at = i / c * 2 * c + i % c;
          const double up = std::abs(gate_up[at + c]), upstream = std::abs(dy[i]);
          const double of_gate = error(gate_up[at]);
          ASSERT_NEAR(got_y[i], y[i], up * of_gate + 2.02 * storage_error<T>(y[i])) << at;
          ASSERT_NEAR(got[at], dgate_up[at],
                      upstream * up * of_gate + 2.02 * storage_error<T>(dgate_up[at]))
              << at;
          ASSERT_NEAR(got[at + c], dgate_up[at + c],
                      upstream * of_gate + 2.02 * storage_error<T>(dgate_up[at + c]))
              << at;
        }
      }
    }
  }
}

TYPED_TEST(ActivationCuda, OutputsMayBeInputs) {
  using T = TypeParam;
  Stream stream(Device::cuda);
  for (const int64_t c : {40, 33}) {
    const auto x = Values<T>::normal({5, c}, 1), gate_up = Values<T>::normal({5, 2 * c}, 2);
    OnDevice<T> x1(x, stream), x2(x, stream), dy(x, stream), out(x, stream);
    activation_forward(out.tensor(), x1.tensor(), Activation::gelu, stream);
    activation_forward(x2.tensor(), x2.tensor(), Activation::gelu, stream);
    EXPECT_EQ(x2.values().bytes(), out.values().bytes());
    activation_backward(out.tensor(), dy.tensor(), x1.tensor(), Activation::gelu, stream);
    activation_backward(dy.tensor(), dy.tensor(), x1.tensor(), Activation::gelu, stream);
    EXPECT_EQ(dy.values().bytes(), out.values().bytes());
    OnDevice<T> gates(gate_up, stream), dgates(gate_up, stream);
    gated_activation_backward(dgates.tensor(), x1.tensor(), gates.tensor(), Activation::silu,
                              stream);
    gated_activation_backward(gates.tensor(), x1.tensor(), gates.tensor(), Activation::silu,
                              stream);
    EXPECT_EQ(gates.values().bytes(), dgates.values().bytes());
  }
}

// Limits, and NaN where the CPU has it.
TEST_F(CudaTest, ActivationsOfFarArguments) {
  Stream host, stream(Device::cuda);
  constexpr float kFar[] = {0, 30, 200, 1e4f, 1e19f, 3e38f, kInfinity, kNan};
  for (const Activation activation : kAll) {
    Values<float> x({16}), y({16}), dy({16}, 1), dx({16});
    for (int64_t i = 0; i < 16; i++) x.set(i, i % 2 == 0 ? kFar[i / 2] : -kFar[i / 2]);
    OnDevice<float> device_x(x, stream), device_y(y, stream), device_dy(dy, stream);
    OnDevice<float> device_dx(dx, stream);
    activation_forward(y.tensor(), x.tensor(), activation, host);
    activation_forward(device_y.tensor(), device_x.tensor(), activation, stream);
    activation_backward(dx.tensor(), dy.tensor(), x.tensor(), activation, host);
    activation_backward(device_dx.tensor(), device_dy.tensor(), device_x.tensor(), activation,
                        stream);
    const auto expect_near = [&](double got, double want, double at) {
      ASSERT_EQ(std::isnan(got), std::isnan(want)) << name(activation) << " of " << at;
      if (std::isnan(want) || got == want) return;
      EXPECT_NEAR(got, want, 1e-11 + 4 * kRounding * std::abs(want))
          << name(activation) << " of " << at;
    };
    for (int64_t i = 0; i < 16; i++) {
      expect_near(device_y.values()[i], y[i], x[i]);
      expect_near(device_dx.values()[i], dx[i], x[i]);
    }
  }
}

TEST_F(CudaTest, ActivationsOfNothing) {
  Stream stream(Device::cuda);
  OnDevice<float> x(Values<float>({0, 4}), stream), gate_up(Values<float>({0, 8}), stream);
  activation_forward(x.tensor(), x.tensor(), Activation::relu, stream);
  activation_backward(x.tensor(), x.tensor(), x.tensor(), Activation::relu, stream);
  gated_activation_forward(x.tensor(), gate_up.tensor(), Activation::silu, stream);
  gated_activation_backward(gate_up.tensor(), x.tensor(), gate_up.tensor(), Activation::silu,
                            stream);
  stream.synchronize();
}

}  // namespace
}  // namespace lockstep::kernels::tests
