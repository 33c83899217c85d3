#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/attention.h"

// Rotary position embedding (Su et al., 2021) of queries and keys, pairing dimension i with i + D/2
// as Llama and Hugging Face do.
//
//   q'[i]       = q[i] * cos(t w_i) - q[i + D/2] * sin(t w_i)
//   q'[i + D/2] = q[i + D/2] * cos(t w_i) + q[i] * sin(t w_i)      i < D/2
//
// `table` (positions, D) fp32 holds cos(t w_i) for i < D/2, then sin(t w_i); the model computes it.
namespace lockstep::kernels::cpu {

// Rotates the H query and K key heads of qkv (B, T, (H + 2K) * D) in place; token t of each
// sequence stands at position first_position + t.
void rope_forward(const Tensor& qkv, const Tensor& table, const Heads& heads,
                  int64_t first_position, Stream& stream);

// The transpose: rotates dqkv back, in place.
void rope_backward(const Tensor& dqkv, const Tensor& table, const Heads& heads,
                   int64_t first_position, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::rope_forward) rope_forward;
decltype(cpu::rope_backward) rope_backward;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void rope_forward(const Tensor& qkv, const Tensor& table, const Heads& heads,
                         int64_t first_position, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::rope_forward(qkv, table, heads, first_position, stream);
  }
  return cpu::rope_forward(qkv, table, heads, first_position, stream);
}

inline void rope_backward(const Tensor& dqkv, const Tensor& table, const Heads& heads,
                          int64_t first_position, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::rope_backward(dqkv, table, heads, first_position, stream);
  }
  return cpu::rope_backward(dqkv, table, heads, first_position, stream);
}

}  // namespace lockstep::kernels
