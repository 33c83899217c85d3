#include "kernels/matmul.h"

#include <algorithm>

#include "core/thread_pool.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {
namespace {

// Up to this many rows, reading the weight is what costs: rows are multiplied one by one.
constexpr int64_t kFewRows = 4;

// sum_i x[i] * w[j * stride + i] for j < 4.
template <class T>
LOCKSTEP_CLONES void four_dots(float* out, const T* x, const T* w, int64_t stride, int64_t n) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < n; i++) {
    const float v = to_float(x[i]);
    s0 += v * to_float(w[i]);
    s1 += v * to_float(w[stride + i]);
    s2 += v * to_float(w[2 * stride + i]);
    s3 += v * to_float(w[3 * stride + i]);
  }
  out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

template <class T>
void forward_few_rows(const Tensor& y, const T* x, const T* weight, const T* bias, int64_t rows,
                      int64_t inputs, int64_t outputs) {
  constexpr int64_t kOutputs = 4;
  const int64_t groups = (outputs + kOutputs - 1) / kOutputs;
  const int64_t grain = std::max<int64_t>(1, kElementGrain / (inputs * kOutputs));
  parallel_for(groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kOutputs; first < std::min(end * kOutputs, outputs);
         first += kOutputs) {
      const int64_t count = std::min(kOutputs, outputs - first);
      for (int64_t n = 0; n < rows; n++) {
        float sums[kOutputs];
        if (count == kOutputs) {
          four_dots(sums, x + n * inputs, weight + first * inputs, inputs, inputs);
        } else {
          for (int64_t o = 0; o < count; o++) {
            float same[kOutputs];  // the same row four times
            four_dots(same, x + n * inputs, weight + (first + o) * inputs, 0, inputs);
            sums[o] = same[0];
          }
        }
        if (bias != nullptr) {
          for (int64_t o = 0; o < count; o++) sums[o] += to_float(bias[first + o]);
        }
        with_float_type(y.dtype(), [&](auto tag) {
          using Y = typename decltype(tag)::type;
          narrow(y.as<Y>() + n * outputs + first, sums, count);
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

}  // namespace

void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    Stream&) {
  CHECK(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows(),
        "{} = {} x {}", y.shape().to_string(), x.shape().to_string(), weight.shape().to_string());
  CHECK(x.dtype() == weight.dtype());
  CHECK(bias.empty() || (bias.size() == y.cols() && bias.dtype() == x.dtype()));
  if (x.rows() > kFewRows) return product_by_rows(y, x, weight, bias, true);
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward_few_rows(y, x.as<T>(), weight.as<T>(), bias.empty() ? nullptr : bias.as<T>(), x.rows(),
                     x.cols(), y.cols());
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

}  // namespace lockstep::kernels::cpu
