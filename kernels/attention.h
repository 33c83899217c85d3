#pragma once
#include <span>

#include "core/device.h"
#include "core/tensor.h"
#include "kernels/dropout.h"
#include "kernels/matmul.h"

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

// Generation keeps keys and values in pages (Kwon et al., "PagedAttention", 2023), each of
// page_size tokens of one sequence in all layers: (L, 2, K, page_size, D), keys, then values. Of a
// sequence with new tokens:
struct CachedSequence {
  int64_t tokens = 0;            // new ones; their rows follow those of the sequence before
  int64_t position = 0;          // of the first of them: tokens that are in the pages already
  std::span<void* const> pages;  // of all of its tokens, token t in pages[t / page_size]
};
struct PagePlace {
  int64_t page_size = 0;  // tokens; a multiple of 4. On a GPU: all of a sequence is one page
  int64_t layer = 0;
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

// Generation: attention of the new tokens of each sequence to themselves and to all before them in
// it. First copies the new keys and values into their places in the pages, which are of qkv's
// dtype; then writes y (N, H * D). qkv (N, (H + 2K) * D), N the new tokens of all sequences. On the
// CPU a token's bits depend on `rows` and on the tokens of its sequence up to it alone: not on how
// many of them are new, nor on the size of a page.
void attention_with_cache(const Tensor& y, const Tensor& qkv, const Heads& heads,
                          std::span<const CachedSequence> sequences, const PagePlace& place,
                          Rows rows, Stream& stream);

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

inline void attention_with_cache(const Tensor& y, const Tensor& qkv, const Heads& heads,
                                 std::span<const CachedSequence> sequences, const PagePlace& place,
                                 Rows rows, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::attention_with_cache(y, qkv, heads, sequences, place, rows, stream);
  }
  return cpu::attention_with_cache(y, qkv, heads, sequences, place, rows, stream);
}

}  // namespace lockstep::kernels
