#include "cuda_emulation/matrix_product.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace cuda_emulation {
namespace {

template <class T>
T& element(void* data, int64_t i) {
  return static_cast<T*>(data)[i];
}

float load(void* data, int64_t i, cudaDataType type) {
  if (type == CUDA_R_32F) return element<float>(data, i);
  if (type == CUDA_R_16BF) return __bfloat162float(element<__nv_bfloat16>(data, i));
  return __half2float(element<__half>(data, i));
}

void store(void* data, int64_t i, cudaDataType type, float value) {
  if (type == CUDA_R_32F) {
    element<float>(data, i) = value;
  } else if (type == CUDA_R_16BF) {
    element<__nv_bfloat16>(data, i) = __float2bfloat16_rn(value);
  } else {
    element<__half>(data, i) = __float2half_rn(value);
  }
}

// To the 10 bits of mantissa that tensor cores read of an fp32, to nearest.
float to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  constexpr uint32_t kDropped = 13;
  const auto bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + (1u << (kDropped - 1))) >> kDropped << kDropped);
}

constexpr float kSqrt2OverPi = 0.7978845608f;
constexpr float kCubic = 0.044715f;

float gelu(float x) { return 0.5f * x * (1 + std::tanh(kSqrt2OverPi * (x + kCubic * x * x * x))); }
float gelu_derivative(float x) {
  const float t = std::tanh(kSqrt2OverPi * (x + kCubic * x * x * x));
  return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * kSqrt2OverPi * (1 + 3 * kCubic * x * x);
}

// op(matrix) in fp32, its columns one after the other.
std::vector<float> widened(const Matrix& matrix, bool transpose, int32_t nth, bool round_to_tf32) {
  const int64_t rows = transpose ? matrix.cols : matrix.rows;
  const int64_t cols = transpose ? matrix.rows : matrix.cols;
  std::vector<float> out(static_cast<size_t>(rows * cols));
  float* next = out.data();
  for (int64_t j = 0; j < cols; j++) {
    for (int64_t i = 0; i < rows; i++) {
      const int64_t offset = transpose ? matrix.offset(j, i) : matrix.offset(i, j);
      const float value = load(matrix.data, nth * matrix.stride + offset, matrix.type);
      *next++ = round_to_tf32 ? to_tf32(value) : value;
    }
  }
  return out;
}

// sum += a b over k from `from` to `to`, all by columns. Four columns of a at a time, so that sum
// is loaded less often.
__attribute__((target_clones("arch=x86-64-v3", "default"))) void add_product(
    float* __restrict__ sum, const float* __restrict__ a, const float* __restrict__ b, int64_t m,
    int64_t n, int64_t k, int64_t from, int64_t to) {
  constexpr int64_t kDepth = 64;  // of a's columns that stay in the cache
  for (int64_t begin = from; begin < to; begin += kDepth) {
    const int64_t end = std::min(to, begin + kDepth);
    for (int64_t j = 0; j < n; j++) {
      float* __restrict__ column = sum + j * m;
      int64_t l = begin;
      for (; l + 4 <= end; l += 4) {
        const float* a0 = a + l * m;
        const float *a1 = a0 + m, *a2 = a1 + m, *a3 = a2 + m;
        const float* x = b + j * k + l;
        for (int64_t i = 0; i < m; i++) {
          column[i] += a0[i] * x[0] + a1[i] * x[1] + a2[i] * x[2] + a3[i] * x[3];
        }
      }
      for (; l < end; l++) {
        for (int64_t i = 0; i < m; i++) column[i] += a[l * m + i] * b[j * k + l];
      }
    }
  }
}

float finished(const Product& p, int32_t nth, int64_t i, int64_t j, float sum) {
  const cudaDataType type = p.d.type;
  float value = p.alpha * sum;
  if (p.beta != 0) value += p.beta * load(p.c.data, nth * p.c.stride + p.c.offset(i, j), type);
  if ((p.epilogue & kBias) != 0) value += load(p.bias, nth * p.bias_stride + i, type);
  const int64_t aux = nth * p.aux_stride + j * p.aux_leading + i;
  if ((p.epilogue & kGelu) != 0) {
    if ((p.epilogue & kAux) != 0) store(p.aux, aux, type, value);
    value = gelu(value);
  }
  if ((p.epilogue & kRelu) != 0) value = std::max(value, 0.0f);
  if ((p.epilogue & kGeluGradient) != 0) value *= gelu_derivative(load(p.aux, aux, type));
  return value;
}

void compute_one(const Product& p, int32_t nth) {
  const int64_t m = p.m(), n = p.n(), k = p.k();
  const std::vector<float> a = widened(p.a, p.transpose_a, nth, p.round_to_tf32);
  const std::vector<float> b = widened(p.b, p.transpose_b, nth, p.round_to_tf32);
  std::vector<float> d(static_cast<size_t>(m * n));
  for (int64_t part = 0; part < p.parts; part++) {
    std::vector<float> sum(d.size());
    add_product(sum.data(), a.data(), b.data(), m, n, k, k * part / p.parts,
                k * (part + 1) / p.parts);
    for (size_t i = 0; i < d.size(); i++) d[i] += sum[i];
  }

  std::vector<float> bias_gradient(static_cast<size_t>(p.bias_size()));
  float* next = d.data();
  for (int64_t j = 0; j < n; j++) {
    for (int64_t i = 0; i < m; i++, next++) {
      const float value = finished(p, nth, i, j, *next);
      if ((p.epilogue & kSumOfRowsOfD) != 0) bias_gradient[static_cast<size_t>(i)] += value;
      store(p.d.data, nth * p.d.stride + p.d.offset(i, j), p.d.type, value);
    }
  }
  if ((p.epilogue & kBiasGradient) == 0) return;
  for (int64_t l = 0; l < k && (p.epilogue & kSumOfRowsOfD) == 0; l++) {
    for (int64_t i = 0; i < p.bias_size(); i++) {
      const bool of_a = (p.epilogue & kSumOfRowsOfA) != 0;
      bias_gradient[static_cast<size_t>(i)] +=
          (of_a ? a : b)[static_cast<size_t>(of_a ? l * m + i : i * k + l)];
    }
  }
  for (int64_t i = 0; i < p.bias_size(); i++) {
    store(p.bias, nth * p.bias_stride + i, p.d.type, bias_gradient[static_cast<size_t>(i)]);
  }
}

}  // namespace

size_t element_bytes(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }

size_t Matrix::size_bytes() const {
  const int64_t elements = stride * (batch - 1) + (slow() - 1) * leading + fast();
  return static_cast<size_t>(elements) * element_bytes(type);
}

void compute(const Product& product) {
  for (int32_t nth = 0; nth < product.d.batch; nth++) compute_one(product, nth);
}

void fill_with_nan(const Matrix& matrix) {
  for (int64_t j = 0; j < matrix.cols; j++) {
    for (int64_t i = 0; i < matrix.rows; i++) {
      store(matrix.data, matrix.offset(i, j), matrix.type, std::numeric_limits<float>::quiet_NaN());
    }
  }
}

}  // namespace cuda_emulation
