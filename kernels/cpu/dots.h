#pragma once
#include <cstdint>

// Products of one row with a few others, at the speed of memory: for generation, where a token at a
// time goes through the model. Sums are fp32; their order depends on n alone.
namespace lockstep::kernels::cpu {

// out[j] = sum_i x[i] * rows[j * stride + i], for j < count, i < n.
template <class T>
void dots(float* out, const T* x, const T* rows, int64_t stride, int64_t count, int64_t n);

// The same of `rows_of_x` rows x, each with the same bits, reading every row of `rows` once for up
// to four of them: out[m * stride_of_out + j] = sum_i x[m * n + i] * rows[j * stride + i].
template <class T>
void dots_of_rows(float* out, int64_t stride_of_out, const T* x, int64_t rows_of_x, const T* rows,
                  int64_t stride, int64_t count, int64_t n);

// out[i] += sum_j weights[j] * rows[j * stride + i], for j < count, i < n. Four rows are added up
// at a time: cut where j is a multiple of 4, it has the same bits.
template <class T>
void add_weighted(float* out, const float* weights, const T* rows, int64_t stride, int64_t count,
                  int64_t n);

}  // namespace lockstep::kernels::cpu
