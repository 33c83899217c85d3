#pragma once
#include "core/device.h"
#include "core/tensor.h"

// Look-up of token vectors, plus learned positions where the model has them.
//
//   y[b,t] = token_table[tokens[b,t]] + position_table[first_position + t]
//
// tokens (B, T) int32 in [0, V); token_table (V, C), position_table (positions, C) or empty, and
// y (B, T, C) share one dtype.
namespace lockstep::kernels::cpu {

// Writes y. Throws std::logic_error on a token outside the table.
void embedding_forward(const Tensor& y, const Tensor& tokens, const Tensor& token_table,
                       const Tensor& position_table, int64_t first_position, Stream& stream);

// Adds to dtoken_table (V, C) and dposition_table ((positions, C) or empty), both fp32. Each row is
// added up in the order of the tokens, by one thread.
void embedding_backward(const Tensor& dtoken_table, const Tensor& dposition_table, const Tensor& dy,
                        const Tensor& tokens, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::embedding_forward) embedding_forward;
decltype(cpu::embedding_backward) embedding_backward;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void embedding_forward(const Tensor& y, const Tensor& tokens, const Tensor& token_table,
                              const Tensor& position_table, int64_t first_position,
                              Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::embedding_forward(y, tokens, token_table, position_table, first_position,
                                     stream);
  }
  return cpu::embedding_forward(y, tokens, token_table, position_table, first_position, stream);
}

inline void embedding_backward(const Tensor& dtoken_table, const Tensor& dposition_table,
                               const Tensor& dy, const Tensor& tokens, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::embedding_backward(dtoken_table, dposition_table, dy, tokens, stream);
  }
  return cpu::embedding_backward(dtoken_table, dposition_table, dy, tokens, stream);
}

}  // namespace lockstep::kernels
