#pragma once
#include <cstdint>

#include "core/rehearsal.h"
#include "core/tensor.h"

// What kernels on all devices declare of their work. Bytes: each operand once, whatever a kernel
// does to get there; FLOPs: of products alone, because other arithmetic is little beside the bytes.
namespace lockstep::kernels {

// The bytes of all these together. What is both read and written counts twice.
template <class... Tensors>
double bytes_of(const Tensors&... x) {
  return (0.0 + ... + (x.empty() ? 0.0 : static_cast<double>(x.size_bytes())));
}

// FLOPs of one product of attention over all heads: of each query with the keys up to its own,
// which causality makes about half of the square, or of as many weights with values. Forward has
// two of them, backward five.
inline double attention_product_flops(int64_t sequences, int64_t num_heads, int64_t head_dim,
                                      int64_t tokens, int64_t first_position = 0) {
  const auto n = static_cast<double>(tokens);
  const double pairs = n * static_cast<double>(first_position) + n * (n + 1) / 2;
  return 2.0 * static_cast<double>(sequences * num_heads * head_dim) * pairs;
}

}  // namespace lockstep::kernels
