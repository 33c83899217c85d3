#pragma once
#include <cstdint>

#include "core/device.h"
#include "core/tensor.h"

// The forward product of a linear layer whose weight is quantized to 8 or 4 bits:
//
//   y[n,o]      = sum_i x[n,i] * weight[o,i] + bias[o]
//   weight[o,i] = scales[o,g] * (q[o,i] - zeros[o,g])     g = i / group_size
//
// N rows, I inputs, O outputs. The numbers q are unpacked in registers: the matrix never stands in
// memory whole. Activations are rounded to 16 bits under the largest of a block
// (cpu/quantized_dots.h), sums are fp32; the bits of a row of y depend neither on the other rows,
// nor on their number, nor on threads. A row of x that is not finite gives NaN. CPU only.
namespace lockstep::kernels {

// A view of memory that somebody else owns; empty: no matrix.
//
// A group of G inputs takes W = G * bits / 32 words. Bits [bits * k, bits * (k + 1)) of its word j
// are q of its input k * W + j, so that neighbouring words hold neighbouring inputs.
struct QuantizedMatrix {
  int64_t outputs = 0, inputs = 0;  // O, I
  int bits = 0;                     // 8 or 4
  int64_t group_size = 0;           // divides I; is_group_size()
  uint32_t* words = nullptr;        // (O, I * bits / 32)
  float* scales = nullptr;          // (O, I / group_size)
  uint8_t* zeros = nullptr;         // (O, I / group_size)

  bool empty() const { return words == nullptr; }
  int64_t groups() const { return inputs / group_size; }             // of a row
  int64_t words_of_group() const { return group_size * bits / 32; }  // W
  int64_t words_of_row() const { return inputs * bits / 32; }
  int64_t size_bytes() const { return outputs * (4 * words_of_row() + 5 * groups()); }
};

// Whether the kernel has groups of this many inputs: 32, 64 and multiples of 128.
constexpr bool is_group_size(int64_t n) { return n == 32 || n == 64 || (n > 0 && n % 128 == 0); }

// Writes the words of row `output` from its I numbers q, and back.
void pack_row(const QuantizedMatrix& weight, int64_t output, const uint8_t* q);
void unpack_row(const QuantizedMatrix& weight, int64_t output, uint8_t* q);

namespace cpu {

// Writes y (N, O); x (N, I), y and bias share one dtype. bias (O) may be empty.
void quantized_linear_forward(const Tensor& y, const Tensor& x, const QuantizedMatrix& weight,
                              const Tensor& bias, Stream& stream);

}  // namespace cpu
}  // namespace lockstep::kernels
