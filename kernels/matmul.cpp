#include "kernels/matmul.h"

#include <algorithm>

#include "core/profile.h"
#include "core/thread_pool.h"
#include "kernels/cpu/dots.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

template <class T>
void forward_one_by_one(const Tensor& y, const T* x, const T* weight, const T* bias, int64_t rows,
                        int64_t inputs, int64_t outputs) {
  constexpr int64_t kOutputs = 16;  // a task
  constexpr int64_t kTogether = 8;  // rows that an output's weights serve while they are in reach
  parallel_for(outputs, kOutputs, [&](int64_t first, int64_t end) {
    float sums[kTogether * kOutputs];
    for (int64_t begin = 0; begin < rows; begin += kTogether) {
      const int64_t count = std::min(kTogether, rows - begin);
      dots_of_rows(sums, kOutputs, x + begin * inputs, count, weight + first * inputs, inputs,
                   end - first, inputs);
      for (int64_t n = 0; n < count; n++) {
        float* row = sums + n * kOutputs;
        for (int64_t o = 0; bias != nullptr && o < end - first; o++) {
          row[o] += to_float(bias[first + o]);
        }
        with_float_type(y.dtype(), [&](auto tag) {
          using Y = typename decltype(tag)::type;
          narrow(y.as<Y>() + (begin + n) * outputs + first, row, end - first);
        });
      }
    }
  });
}

template <class T>
LOCKSTEP_CLONES void add_rows(float* sum, const T* rows, int64_t count, int64_t stride, int64_t n) {
  for (int64_t r = 0; r < count; r++) {
#pragma omp simd
    for (int64_t o = 0; o < n; o++) sum[o] += to_float(rows[r * stride + o]);
  }
}

// dbias[o] += sum_n dy[n,o]: a block of columns by one thread, kRowBlock rows at a time, in order.
void bias_gradient(const Tensor& dbias, const Tensor& dy) {
  constexpr int64_t kColumns = 64;
  const int64_t outputs = dy.cols(), rows = dy.rows();
  const ProfileScope scope({"bias_gradient", bytes_of(dy) + 2 * bytes_of(dbias)});
  with_float_type(dy.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(outputs, kColumns, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < rows; row += kRowBlock) {
        float partial[kColumns] = {};
        add_rows(partial, dy.as<T>() + row * outputs + begin, std::min(kRowBlock, rows - row),
                 outputs, end - begin);
        for (int64_t o = begin; o < end; o++) dbias.as<float>()[o] += partial[o - begin];
      }
    });
  });
}

void check_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  CHECK(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows(),
        "{} = {} x {}", y.shape().to_string(), x.shape().to_string(), weight.shape().to_string());
  CHECK(x.dtype() == weight.dtype());
  CHECK(bias.empty() || (bias.size() == y.cols() && bias.dtype() == x.dtype()));
}

}  // namespace

void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    Stream&) {
  check_forward(y, x, weight, bias);
  product_by_rows(y, x, weight, bias, true);
}

void linear_forward_one_by_one(const Tensor& y, const Tensor& x, const Tensor& weight,
                               const Tensor& bias, Stream&) {
  check_forward(y, x, weight, bias);
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward_one_by_one(y, x.as<T>(), weight.as<T>(), data_or_null<T>(bias), x.rows(), x.cols(),
                       y.cols());
  });
}

void linear_backward_input(const Tensor& dx, const Tensor& dy, const Tensor& weight, Stream&) {
  CHECK(dx.rows() == dy.rows() && dy.cols() == weight.rows() && dx.cols() == weight.cols(),
        "{} = {} x {}", dx.shape().to_string(), dy.shape().to_string(), weight.shape().to_string());
  CHECK(dy.dtype() == weight.dtype());
  product_by_rows(dx, dy, weight, Tensor(), false);
}

void linear_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                            const Tensor& x, Stream&) {
  CHECK(dweight.rows() == dy.cols() && dweight.cols() == x.cols() && dy.rows() == x.rows(),
        "{} += {} x {}", dweight.shape().to_string(), dy.shape().to_string(),
        x.shape().to_string());
  CHECK(dy.dtype() == x.dtype() && dweight.dtype() == DType::fp32);
  product_over_rows(dweight, dy, x);
  if (!dbias.empty()) bias_gradient(dbias, dy);
}

void linear_activation_forward(const Tensor& y, const Tensor& z, const Tensor& x,
                               const Tensor& weight, const Tensor& bias, Activation activation,
                               Stream& stream) {
  linear_forward(z, x, weight, bias, stream);
  cpu::activation_forward(y, z, activation, stream);
}

void linear_activation_backward_input(const Tensor& dz, const Tensor& dy, const Tensor& weight,
                                      const Tensor& z, Activation activation, Stream& stream) {
  linear_backward_input(dz, dy, weight, stream);
  cpu::activation_backward(dz, dz, z, activation, stream);
}

}  // namespace lockstep::kernels::cpu
