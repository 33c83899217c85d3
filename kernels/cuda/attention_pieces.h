#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/attention.h"

// How a backward pass of attention is cut where its scratch memory would be large. cuDNN's
// deterministic backward keeps the gradients of all scores of a call, in 2 bytes each. Sequences
// have nothing to do with each other, nor have the groups of heads that share a key-value head, so
// that a pass may be several calls on parts of the same tensors.
namespace lockstep::kernels::cuda {

// So much is enough for 20 sequences of GPT-2's 1024 tokens and 12 heads.
inline constexpr int64_t kMaxScoreBytes = int64_t{512} << 20;
// One group of heads cannot be cut; beyond this it is better left to kernels that need no scratch.
inline constexpr int64_t kMaxGroupScoreBytes = int64_t{4} << 30;

// Scratch for the scores' gradients of one head: rows are padded to 64 queries and 128 keys.
inline int64_t score_bytes_of_head(int64_t tokens) {
  return 2 * ((tokens + 63) / 64 * 64) * ((tokens + 127) / 128 * 128);
}

// Key-value heads [kv_head, kv_head + num_kv_heads) of sequences [sequence, sequence + sequences).
// All key-value heads, or one sequence.
struct AttentionPiece {
  int64_t sequence, sequences;
  int64_t kv_head, num_kv_heads;
  friend bool operator==(const AttentionPiece&, const AttentionPiece&) = default;
};

// A pass over `sequences` (at least 1) of `tokens` each, in pieces that need at most max_bytes of
// scratch, or are one group of heads: first as many whole sequences as fit, else parts of one.
inline std::vector<AttentionPiece> attention_pieces(int64_t sequences, int64_t tokens,
                                                    const Heads& heads,
                                                    int64_t max_bytes = kMaxScoreBytes) {
  const int64_t group = heads.num_heads / heads.num_kv_heads * score_bytes_of_head(tokens);
  const int64_t groups = std::max<int64_t>(1, max_bytes / group);  // at once
  std::vector<AttentionPiece> pieces;
  if (groups >= heads.num_kv_heads) {
    const int64_t count = groups / heads.num_kv_heads;
    for (int64_t first = 0; first < sequences; first += count) {
      pieces.push_back({first, std::min(count, sequences - first), 0, heads.num_kv_heads});
    }
    return pieces;
  }
  for (int64_t sequence = 0; sequence < sequences; sequence++) {
    for (int64_t head = 0; head < heads.num_kv_heads; head += groups) {
      pieces.push_back({sequence, 1, head, std::min(groups, heads.num_kv_heads - head)});
    }
  }
  return pieces;
}

}  // namespace lockstep::kernels::cuda
