#include "kernels/cpu/dots.h"

#include <algorithm>

#include "core/dtype.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {
namespace {

// Four rows at a time hide the latency of addition.
constexpr int64_t kRows = 4;

template <class T>
LOCKSTEP_CLONES void four_dots(float* out, const T* x, const T* a, const T* b, const T* c,
                               const T* d, int64_t n) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < n; i++) {
    const float v = to_float(x[i]);
    s0 += v * to_float(a[i]);
    s1 += v * to_float(b[i]);
    s2 += v * to_float(c[i]);
    s3 += v * to_float(d[i]);
  }
  out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

// The same of two rows x and y: each sum is made as above, with the bits that it has there.
template <class T>
LOCKSTEP_CLONES void two_by_four_dots(float* out, float* out_y, const T* x, const T* y, const T* a,
                                      const T* b, const T* c, const T* d, int64_t n) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, t0, t1, t2, t3)
  for (int64_t i = 0; i < n; i++) {
    const float v = to_float(x[i]), w = to_float(y[i]);
    const float of_a = to_float(a[i]), of_b = to_float(b[i]);
    const float of_c = to_float(c[i]), of_d = to_float(d[i]);
    s0 += v * of_a;
    s1 += v * of_b;
    s2 += v * of_c;
    s3 += v * of_d;
    t0 += w * of_a;
    t1 += w * of_b;
    t2 += w * of_c;
    t3 += w * of_d;
  }
  out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
  out_y[0] = t0, out_y[1] = t1, out_y[2] = t2, out_y[3] = t3;
}

// The same of four rows, from x on.
template <class T>
LOCKSTEP_CLONES void four_by_four_dots(float* out, const T* x, const T* a, const T* b, const T* c,
                                       const T* d, int64_t n) {
  const T *y = x + n, *z = y + n, *w = z + n;
  float x0 = 0, x1 = 0, x2 = 0, x3 = 0, y0 = 0, y1 = 0, y2 = 0, y3 = 0;
  float z0 = 0, z1 = 0, z2 = 0, z3 = 0, w0 = 0, w1 = 0, w2 = 0, w3 = 0;
#pragma omp simd reduction(+ : x0, x1, x2, x3, y0, y1, y2, y3, z0, z1, z2, z3, w0, w1, w2, w3)
  for (int64_t i = 0; i < n; i++) {
    const float of_a = to_float(a[i]), of_b = to_float(b[i]);
    const float of_c = to_float(c[i]), of_d = to_float(d[i]);
    const float of_x = to_float(x[i]), of_y = to_float(y[i]);
    const float of_z = to_float(z[i]), of_w = to_float(w[i]);
    x0 += of_x * of_a, x1 += of_x * of_b, x2 += of_x * of_c, x3 += of_x * of_d;
    y0 += of_y * of_a, y1 += of_y * of_b, y2 += of_y * of_c, y3 += of_y * of_d;
    z0 += of_z * of_a, z1 += of_z * of_b, z2 += of_z * of_c, z3 += of_z * of_d;
    w0 += of_w * of_a, w1 += of_w * of_b, w2 += of_w * of_c, w3 += of_w * of_d;
  }
  const float sums[] = {x0, x1, x2, x3, y0, y1, y2, y3, z0, z1, z2, z3, w0, w1, w2, w3};
  std::copy_n(sums, 4 * kRows, out);
}

// Rows of x that go together, at most: sixteen sums, and what is added to them, need the 32
// registers of AVX-512.
int64_t most_together() {
#if defined(__x86_64__)
  static const bool many_registers = __builtin_cpu_supports("avx512vl") != 0;
  return many_registers ? 4 : 2;
#else
  return 2;
#endif
}

template <class T>
LOCKSTEP_CLONES void add_four(float* out, const float* weights, const T* a, const T* b, const T* c,
                              const T* d, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    out[i] += weights[0] * to_float(a[i]) + weights[1] * to_float(b[i]) +
              (weights[2] * to_float(c[i]) + weights[3] * to_float(d[i]));
  }
}

}  // namespace

// A short last group has its last row several times, with weight 0 in a sum.

template <class T>
void dots(float* out, const T* x, const T* rows, int64_t stride, int64_t count, int64_t n) {
  for (int64_t j = 0; j < count; j += kRows) {
    const auto row = [&](int64_t k) { return rows + std::min(j + k, count - 1) * stride; };
    float sums[kRows];
    four_dots(sums, x, row(0), row(1), row(2), row(3), n);
    std::copy_n(sums, std::min(kRows, count - j), out + j);
  }
}

template <class T>
void dots_of_rows(float* out, int64_t stride_of_out, const T* x, int64_t rows_of_x, const T* rows,
                  int64_t stride, int64_t count, int64_t n) {
  for (int64_t j = 0; j < count; j += kRows) {
    const auto row = [&](int64_t k) { return rows + std::min(j + k, count - 1) * stride; };
    const T *a = row(0), *b = row(1), *c = row(2), *d = row(3);
    for (int64_t m = 0; m < rows_of_x;) {
      float sums[4][kRows];
      const int64_t left = std::min(rows_of_x - m, most_together());
      const int64_t now = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const T* x_rows = x + m * n;
      if (now == 4) four_by_four_dots(sums[0], x_rows, a, b, c, d, n);
      if (now == 2) two_by_four_dots(sums[0], sums[1], x_rows, x_rows + n, a, b, c, d, n);
      if (now == 1) four_dots(sums[0], x_rows, a, b, c, d, n);
      for (int64_t k = 0; k < now; k++, m++) {
        std::copy_n(sums[k], std::min(kRows, count - j), out + m * stride_of_out + j);
      }
    }
  }
}

template <class T>
void add_weighted(float* out, const float* weights, const T* rows, int64_t stride, int64_t count,
                  int64_t n) {
  for (int64_t j = 0; j < count; j += kRows) {
    const auto row = [&](int64_t k) { return rows + std::min(j + k, count - 1) * stride; };
    float of_rows[kRows] = {};
    std::copy_n(weights + j, std::min(kRows, count - j), of_rows);
    add_four(out, of_rows, row(0), row(1), row(2), row(3), n);
  }
}

#define LOCKSTEP_INSTANTIATE(T)                                                              \
  template void dots(float*, const T*, const T*, int64_t, int64_t, int64_t);                 \
  template void dots_of_rows(float*, int64_t, const T*, int64_t, const T*, int64_t, int64_t, \
                             int64_t);                                                       \
  template void add_weighted(float*, const float*, const T*, int64_t, int64_t, int64_t);
LOCKSTEP_INSTANTIATE(float)
LOCKSTEP_INSTANTIATE(bf16)
LOCKSTEP_INSTANTIATE(fp16)
#undef LOCKSTEP_INSTANTIATE

}  // namespace lockstep::kernels::cpu
