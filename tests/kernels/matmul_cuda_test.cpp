#include "kernels/cuda/bias_gradient.h"
#include "kernels/matmul.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

struct LinearSize {
  int64_t rows, inputs, outputs;
};
// Single values, odd sizes, whole packs, more rows than a block of the bias gradient adds up (128),
// nothing.
constexpr LinearSize kLinearSizes[] = {{1, 1, 1},    {3, 7, 5},    {5, 16, 8},     {129, 33, 65},
                                       {66, 9, 300}, {64, 64, 96}, {128, 100, 10}, {0, 8, 8}};

template <class T>
struct Linear {
  LinearSize size;
  Values<T> x, weight, bias, dy, y, dx;
  Values<float> dweight, dbias;

  explicit Linear(LinearSize s)
      : size(s),
        x(Values<T>::normal({s.rows, s.inputs}, 1)),
        weight(Values<T>::normal({s.outputs, s.inputs}, 2)),
        bias(Values<T>::normal({s.outputs}, 3)),
        dy(Values<T>::normal({s.rows, s.outputs}, 4)),
        y({s.rows, s.outputs}),
        dx({s.rows, s.inputs}),
        dweight({s.outputs, s.inputs}, 10.0f),
        dbias({s.outputs}, 20.0f) {}

  void run_on_cpu(bool with_bias) {
    Stream host;
    linear_forward(y.tensor(), x.tensor(), weight.tensor(), with_bias ? bias.tensor() : Tensor(),
                   host);
    linear_backward_input(dx.tensor(), dy.tensor(), weight.tensor(), host);
    linear_backward_weight(dweight.tensor(), with_bias ? dbias.tensor() : Tensor(), dy.tensor(),
                           x.tensor(), host);
  }
  // Replaces what is written and added to by the device's results.
  void run_on_gpu(bool with_bias, int64_t shift = 0) {
    Stream stream(Device::cuda);
    OnDevice<T> gpu_x(x, stream, shift), gpu_weight(weight, stream, shift),
        gpu_bias(bias, stream, shift), gpu_dy(dy, stream, shift), gpu_y(y, stream, shift),
        gpu_dx(dx, stream, shift);
    OnDevice<float> gpu_dweight(dweight, stream, shift), gpu_dbias(dbias, stream, shift);
    linear_forward(gpu_y.tensor(), gpu_x.tensor(), gpu_weight.tensor(),
                   with_bias ? gpu_bias.tensor() : Tensor(), stream);
    linear_backward_input(gpu_dx.tensor(), gpu_dy.tensor(), gpu_weight.tensor(), stream);
    linear_backward_weight(gpu_dweight.tensor(), with_bias ? gpu_dbias.tensor() : Tensor(),
                           gpu_dy.tensor(), gpu_x.tensor(), stream);
    y = gpu_y.values(), dx = gpu_dx.values();
    dweight = gpu_dweight.values(), dbias = gpu_dbias.values();
  }
  std::string bytes() const { return y.bytes() + dx.bytes() + dweight.bytes() + dbias.bytes(); }
};

// Two sums of the same `terms` products of normal values, made in fp32 in any two orders: each term
// passes through at most `terms` roundings of 2^-24 relative on either side, of partial sums that
// stay below the sum of magnitudes; |product| is 0.64 on average, at most 1.5 over few terms, and
// `start` is there from the first. Storing as T rounds once more, on each side.
double sum_error(int64_t terms, double start) {
  const double n = static_cast<double>(terms) + 2;
  return 2 * n * kRounding * (1.5 * n + start + 4);
}
template <class T, class Y>
void expect_near(const Values<Y>& got, const Values<Y>& want, int64_t terms, double start,
                 const char* what) {
  const double sum = sum_error(terms, start);
  for (int64_t i = 0; i < want.size(); i++) {
    ASSERT_NEAR(got[i], want[i], sum + 2 * storage_error<Y>(std::abs(want[i]) + sum))
        << what << " " << i;
  }
}

template <class T>
class MatmulCuda : public CudaTest {};
TYPED_TEST_SUITE(MatmulCuda, FloatTypes);

TYPED_TEST(MatmulCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  for (const LinearSize s : kLinearSizes) {
    for (const bool with_bias : {true, false}) {
      for (const int64_t shift : {0, 2}) {
        SCOPED_TRACE(testing::Message()
                     << s.rows << " x " << s.inputs << " x " << s.outputs << " bias " << with_bias);
        Linear<T> cpu(s), gpu(s);
        cpu.run_on_cpu(with_bias);
        gpu.run_on_gpu(with_bias, shift);
        expect_near<T>(gpu.y, cpu.y, s.inputs, 1, "y");
        expect_near<T>(gpu.dx, cpu.dx, s.outputs, 0, "dx");
        expect_near<T>(gpu.dweight, cpu.dweight, s.rows, 10, "dweight");
        expect_near<T>(gpu.dbias, cpu.dbias, with_bias ? s.rows : 0, 20, "dbias");
      }
    }
  }
}

TYPED_TEST(MatmulCuda, TheSameCallHasTheSameBits) {
  Linear<TypeParam> first({70, 40, 56}), second({70, 40, 56});
  first.run_on_gpu(true);
  second.run_on_gpu(true);
  EXPECT_EQ(first.bytes(), second.bytes());
}

// Biases at other addresses than the one that the algorithm was chosen with.
TYPED_TEST(MatmulCuda, EachCallHasItsOwnBias) {
  using T = TypeParam;
  Stream stream(Device::cuda);
  OnDevice<T> x(Values<T>({4, 8}), stream), weight(Values<T>({16, 8}), stream);
  for (const float value : {1.0f, 2.0f}) {
    OnDevice<T> bias(Values<T>({16}, value), stream), y(Values<T>({4, 16}), stream);
    linear_forward(y.tensor(), x.tensor(), weight.tensor(), bias.tensor(), stream);
    EXPECT_EQ(y.values().bytes(), Values<T>({4, 16}, value).bytes());
  }
}

TYPED_TEST(MatmulCuda, ProductsOfAnyTypeMayBeFp32) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  auto x = Values<T>::normal({30, 24}, 1), weight = Values<T>::normal({17, 24}, 2);
  Values<float> y({30, 17});
  OnDevice<T> gpu_x(x, stream), gpu_weight(weight, stream);
  OnDevice<float> gpu_y(y, stream);
  linear_forward(y.tensor(), x.tensor(), weight.tensor(), Tensor(), host);
  linear_forward(gpu_y.tensor(), gpu_x.tensor(), gpu_weight.tensor(), Tensor(), stream);
  expect_near<T>(gpu_y.values(), y, 24, 0, "y");
}

// Rows of one block of the sum, of one more, and of blocks of blocks.
TYPED_TEST(MatmulCuda, BiasGradientIsTheSumOfAllRows) {
  using T = TypeParam;
  for (const auto& [rows, columns] : {Size{128, 40}, {129, 264}, {257, 7}, {16700, 3}}) {
    for (const int64_t shift : {0, 1}) {
      Stream stream(Device::cuda);
      Values<T> dy({rows, columns});
      double want[300] = {};
      for (int64_t i = 0; i < dy.size(); i++) {
        dy.set(i, static_cast<float>(i * 7 % 11 - 5));
        want[i % columns] += dy[i];
      }
      OnDevice<T> gpu_dy(dy, stream, shift);
      OnDevice<float> dbias(Values<float>({columns}, 20), stream, shift);
      cuda::add_bias_gradient(dbias.tensor(), gpu_dy.tensor(), stream);
      const Values<float>& sums = dbias.values();
      // Equality: small integers, of which every sum is exact.
      for (int64_t o = 0; o < columns; o++) ASSERT_EQ(sums[o], 20 + want[o]) << rows << " " << o;
    }
  }
}

// Micro-batches add up in the weight's gradient and in the bias', though the product writes sums.
TYPED_TEST(MatmulCuda, WeightGradientsOfTwoCallsAddUp) {
  using T = TypeParam;
  for (const LinearSize s : kLinearSizes) {
    Stream stream(Device::cuda);
    OnDevice<T> x(Values<T>({s.rows, s.inputs}, 2), stream),
        dy(Values<T>({s.rows, s.outputs}, 3), stream);
    OnDevice<float> dweight(Values<float>({s.outputs, s.inputs}, 10), stream),
        dbias(Values<float>({s.outputs}, 20), stream);
    for (int i = 0; i < 2; i++) {
      linear_backward_weight(dweight.tensor(), dbias.tensor(), dy.tensor(), x.tensor(), stream);
    }
    // Equality: small integers, of which every sum is exact.
    const auto rows = static_cast<float>(s.rows);
    EXPECT_EQ(dweight.values().bytes(),
              Values<float>({s.outputs, s.inputs}, 10 + 2 * 6 * rows).bytes());
    EXPECT_EQ(dbias.values().bytes(), Values<float>({s.outputs}, 20 + 2 * 3 * rows).bytes());
  }
}

// |f'| at most, of gelu_tanh and relu.
constexpr double kSteepest = 1.13;
// The two evaluate f and f' with at most 16 roundings each of values of at most max(1, |z|).
double evaluation_error(double z) { return 2 * 16 * kRounding * std::max(1.0, std::abs(z)); }

template <class T>
void expect_activations_agree(LinearSize s, Activation activation, bool with_bias, int64_t shift) {
  SCOPED_TRACE(testing::Message() << s.rows << " x " << s.inputs << " x " << s.outputs << " "
                                  << name(activation) << " bias " << with_bias << " shift "
                                  << shift);
  Stream host, stream(Device::cuda);
  const Shape outer{s.rows, s.outputs};
  auto x = Values<T>::normal({s.rows, s.inputs}, 1), dy = Values<T>::normal({s.rows, s.inputs}, 4),
       weight = Values<T>::normal({s.outputs, s.inputs}, 2),
       bias = Values<T>::normal({s.outputs}, 3), down = Values<T>::normal({s.inputs, s.outputs}, 5);
  Values<T> y(outer), z(outer), dz(outer), products(outer);
  OnDevice<T> gpu_x(x, stream, shift), gpu_weight(weight, stream, shift),
      gpu_bias(bias, stream, shift), gpu_y(y, stream, shift), gpu_z(z, stream, shift);
  linear_activation_forward(y.tensor(), z.tensor(), x.tensor(), weight.tensor(),
                            with_bias ? bias.tensor() : Tensor(), activation, host);
  linear_activation_forward(gpu_y.tensor(), gpu_z.tensor(), gpu_x.tensor(), gpu_weight.tensor(),
                            with_bias ? gpu_bias.tensor() : Tensor(), activation, stream);
  expect_near<T>(gpu_z.values(), z, s.inputs, 1, "z");
  // f of z as it is stored, or before.
  const double sum = sum_error(s.inputs, 1);
  for (int64_t i = 0; i < y.size(); i++) {
    const double stored = 2 * storage_error<T>(std::abs(z[i]) + sum);
    ASSERT_NEAR(gpu_y.values()[i], y[i],
                kSteepest * (sum + stored) + evaluation_error(z[i]) +
                    2.02 * storage_error<T>(std::abs(y[i]) + sum + stored))
        << "y " << i;
  }

  OnDevice<T> gpu_dy(dy, stream, shift), gpu_down(down, stream, shift), same_z(z, stream, shift),
      gpu_dz(dz, stream, shift);
  linear_backward_input(products.tensor(), dy.tensor(), down.tensor(), host);
  linear_activation_backward_input(dz.tensor(), dy.tensor(), down.tensor(), z.tensor(), activation,
                                   host);
  linear_activation_backward_input(gpu_dz.tensor(), gpu_dy.tensor(), gpu_down.tensor(),
                                   same_z.tensor(), activation, stream);
  const double gradient_sum = sum_error(s.inputs, 0);
  for (int64_t i = 0; i < dz.size(); i++) {
    const double product = std::abs(products[i]) + gradient_sum;
    const double stored = 2 * storage_error<T>(product);
    ASSERT_NEAR(gpu_dz.values()[i], dz[i],
                kSteepest * (gradient_sum + stored) + product * evaluation_error(z[i]) +
                    2.02 * storage_error<T>(std::abs(dz[i]) + gradient_sum + stored))
        << "dz " << i;
  }
}

// Fused where rows of outputs are multiples of 8 and begin at multiples of 16 bytes, else not.
TYPED_TEST(MatmulCuda, ActivationsAgreeWithTheCpu) {
  for (const LinearSize s : kLinearSizes) {
    for (const Activation activation : {Activation::gelu_tanh, Activation::relu}) {
      for (const bool with_bias : {true, false}) {
        for (const int64_t shift : {0, 2}) {
          expect_activations_agree<TypeParam>(s, activation, with_bias, shift);
        }
      }
    }
  }
}

using MatmulCudaErrors = CudaTest;

TEST_F(MatmulCudaErrors, NamesShapesThatDoNotFit) {
  Stream stream(Device::cuda);
  OnDevice<float> x(Values<float>({4, 5}), stream), weight(Values<float>({5, 6}), stream),
      y(Values<float>({4, 6}), stream);
  EXPECT_THROW(linear_forward(y.tensor(), x.tensor(), weight.tensor(), Tensor(), stream),
               std::logic_error);
}

}  // namespace
}  // namespace lockstep::kernels::tests
