#pragma once
#include <cstdint>

// Products of one row with a few others, at the speed of memory: for generation, where a token at a
// time goes through the model. Sums are fp32; their order depends on n alone.
namespace lockstep::kernels::cpu {

// out[j] = sum_i x[i] * rows[j * stride + i], for j < count, i < n.
template <class T>
void dots(float* out, const T* x, const T* rows, int64_t stride, int64_t count, int64_t n);

// The same for x and for y, with the same bits, reading `rows` once.
template <class T>
void dots_of_two(float* out, float* out_y, const T* x, const T* y, const T* rows, int64_t stride,
                 int64_t count, int64_t n);

// out[i] += sum_j weights[j] * rows[j * stride + i], for j < count, i < n. Four rows are added up
// at a time: cut where j is a multiple of 4, it has the same bits.
template <class T>
void add_weighted(float* out, const float* weights, const T* rows, int64_t stride, int64_t count,
                  int64_t n);

}  // namespace lockstep::kernels::cpu
