#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/dropout.h"

// Causal self-attention with grouped queries (Vaswani et al., 2017; Ainslie et al., 2023), in
// blocks of queries and keys with a running maximum and sum (Milakov & Gimelshein, 2018; Dao et
// al., "FlashAttention", 2022): memory is linear in T, no T x T matrix is made.
//
//   s[t,u] = q[t] . k[u] / sqrt(D)   for u <= t
//   p[t,u] = exp(s[t,u] - lse[t]),   lse[t] = log sum_u exp(s[t,u])
//   y[t]   = sum_u dropout(p)[t,u] * v[u]
//
// B sequences of T tokens, H query heads, K key-value heads (H a multiple of K; query head h reads
// key-value head h / (H/K)), head size D. qkv packs a token's H queries, K keys, K values:
// (B, T, (H + 2K) * D). y (B, T, H * D) shares its dtype; lse (B, H, T) is fp32, as is all softmax
// arithmetic. A sequence's result does not depend on the other sequences or the number of threads.
namespace lockstep::kernels {

struct Heads {
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // K
  int64_t head_dim = 0;      // D
  int64_t packed() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// Writes y and lse.
void attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv, const Heads& heads,
                       const DropoutMask& mask, Stream& stream);

// Writes dqkv (B, T, (H + 2K) * D); reads y and lse as forward left them.
void attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& y, const Tensor& lse,
                        const Tensor& qkv, const Heads& heads, const DropoutMask& mask,
                        Stream& stream);

// Generation: attention of N new tokens of one sequence, at positions [position, position + N), to
// themselves and to all before them. First copies the new keys and values into their places of the
// caches, key_cache and value_cache (K, capacity, D) of qkv's dtype; then writes y (N, H * D).
// qkv (N, (H + 2K) * D).
void attention_with_cache(const Tensor& y, const Tensor& key_cache, const Tensor& value_cache,
                          const Tensor& qkv, const Heads& heads, int64_t position, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::attention_forward) attention_forward;
decltype(cpu::attention_backward) attention_backward;
decltype(cpu::attention_with_cache) attention_with_cache;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv,
                              const Heads& heads, const DropoutMask& mask, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::attention_forward(y, lse, qkv, heads, mask, stream);
  }
  return cpu::attention_forward(y, lse, qkv, heads, mask, stream);
}

inline void attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& y,
                               const Tensor& lse, const Tensor& qkv, const Heads& heads,
                               const DropoutMask& mask, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::attention_backward(dqkv, dy, y, lse, qkv, heads, mask, stream);
  }
  return cpu::attention_backward(dqkv, dy, y, lse, qkv, heads, mask, stream);
}

inline void attention_with_cache(const Tensor& y, const Tensor& key_cache,
                                 const Tensor& value_cache, const Tensor& qkv, const Heads& heads,
                                 int64_t position, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::attention_with_cache(y, key_cache, value_cache, qkv, heads, position, stream);
  }
  return cpu::attention_with_cache(y, key_cache, value_cache, qkv, heads, position, stream);
}

}  // namespace lockstep::kernels
