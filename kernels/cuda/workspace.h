#pragma once
#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/range.h"

// How much device memory the kernels in CUDA ask their stream for (Stream::workspace), in bytes:
// known before anything is allocated, and in a build without CUDA. Letters for shapes as in
// model/transformer.h.
namespace lockstep::kernels::cuda {

// The most that a product takes: what cuBLASLt's documentation advises for sm_90.
inline constexpr int64_t kProductWorkspaceBytes = int64_t{32} << 20;

// Logits of the classifier stand in memory for a chunk of tokens: as many as have kLogitsBytes of
// them, in whole tiles of a product. Fewer would read and write the weight and its gradient more
// often than the products take. Rows of logits begin at multiples of kStrideMultiple elements,
// because products by odd strides are slow: GPT-2's vocabulary has 50257 tokens.
struct ClassifierChunk {
  static constexpr int64_t kLogitsBytes = int64_t{512} << 20;
  static constexpr int64_t kRowTile = 128, kMaxRows = 2048, kStrideMultiple = 64;

  int64_t stride;          // elements between rows of logits
  int64_t rows;            // of a chunk
  int64_t logits_bytes;    // fp32
  int64_t gradient_bytes;  // 0 where it takes the place of fp32 logits

  ClassifierChunk(int64_t tokens, int64_t vocab_size, DType dtype, bool with_gradient)
      : stride(round_up(vocab_size, kStrideMultiple)) {
    const int64_t fit = kLogitsBytes / (stride * size_bytes(DType::fp32)) / kRowTile * kRowTile;
    rows = std::min(tokens, std::clamp(fit, kRowTile, kMaxRows));
    logits_bytes = rows * stride * size_bytes(DType::fp32);
    gradient_bytes = with_gradient && dtype != DType::fp32 ? rows * stride * size_bytes(dtype) : 0;
  }
  int64_t total_bytes() const { return logits_bytes + gradient_bytes; }
};

// The backward pass of a norm leaves partial sums, `sums` rows of C a block of at most so many.
inline constexpr int64_t kMostRowBlocks = 1024;
inline int64_t norm_workspace_bytes(int64_t rows, int64_t channels, int64_t sums) {
  return std::min(rows, kMostRowBlocks) * sums * channels * size_bytes(DType::fp32);
}

// Sums of blocks of kBiasRows rows, then of blocks of those, each behind the ones it is made of.
inline constexpr int64_t kBiasRows = 128;
constexpr int64_t bias_blocks(int64_t rows) { return pieces(rows, kBiasRows); }
inline int64_t bias_gradient_workspace_bytes(int64_t rows, int64_t columns) {
  int64_t partial_rows = 0;
  for (int64_t r = rows; r > kBiasRows; r = bias_blocks(r)) partial_rows += bias_blocks(r);
  return partial_rows * columns * size_bytes(DType::fp32);
}

// Sorted pairs of token and place, twice.
constexpr int64_t embedding_workspace_bytes(int64_t tokens) {
  return 2 * tokens * static_cast<int64_t>(sizeof(uint64_t));
}

// delta (B, H, T) of the backward pass.
inline int64_t attention_workspace_bytes(int64_t sequences, int64_t num_heads, int64_t tokens) {
  return sequences * num_heads * tokens * size_bytes(DType::fp32);
}

}  // namespace lockstep::kernels::cuda
