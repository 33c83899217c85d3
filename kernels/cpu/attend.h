#pragma once
#include "kernels/attention.h"
#include "kernels/cpu/attention_tiles.h"

// Attention of one head's queries, tile by tile: what the forward pass and generation share, and of
// which backward makes the products again.
namespace lockstep::kernels::cpu {

// Tiles of one head: products of at most kTileQueries queries and kTileKeys keys. Score tiles have
// kTileKeys elements a row, whatever the number of keys.
struct TileProducts {
  int64_t head_dim;
  DType type;

  // scores (queries, n) = a (queries, D) . b (n, D)
  void scores(float* scores_out, const void* a, const void* b, int64_t n) const {
    gemm({.m = kTileQueries,
          .n = n,
          .k = head_dim,
          .a_stride = head_dim,
          .b_stride = head_dim,
          .c_stride = kTileKeys,
          .b_transposed = true,
          .inputs = type},
         a, b, scores_out);
  }
  // out (queries, D) (+)= weights (queries, n) x rows (n, D)
  void weighted_sum(float* out, const void* weights, const void* rows, int64_t n,
                    bool accumulate) const {
    gemm({.m = kTileQueries,
          .n = head_dim,
          .k = n,
          .a_stride = kTileKeys,
          .b_stride = head_dim,
          .c_stride = head_dim,
          .accumulate = accumulate,
          .inputs = type},
         weights, rows, out);
  }
  // out (n, D) += weights (queries, n)^T x rows (queries, D)
  void add_transposed(float* out, const void* weights, const void* rows, int64_t n) const {
    gemm({.m = n,
          .n = head_dim,
          .k = kTileQueries,
          .a_stride = kTileKeys,
          .b_stride = head_dim,
          .c_stride = head_dim,
          .a_transposed = true,
          .accumulate = true,
          .inputs = type},
         weights, rows, out);
  }
};

// Keys of a tile from `first` on, of which queries up to token `last` see the first.
inline int64_t tile_keys(int64_t first, int64_t last) {
  return std::min(kTileKeys, round_up(last + 1 - first, kKeyStep));
}

// Keys and values of a key-value head, gathered: rows of zeros follow the last.
struct KeysAndValues {
  const char* keys;
  const char* values;
  int64_t head_dim;
  DType type;
  const void* key(int64_t u) const { return keys + u * head_dim * size_bytes(type); }
  const void* value(int64_t u) const { return values + u * head_dim * size_bytes(type); }
};

// Where the result of one query head goes, and its queries. lse may be null.
struct QueryHead {
  HeadRows q, y;
  float* lse;
  ProbabilityMask mask;
};

// Rows [begin, end) of a head, row 0 at token `position`. Tiles begin at tokens that are multiples
// of their size, so that a query has the same keys beside it wherever the rows begin.
void attend_segment(const QueryHead& head, const KeysAndValues& kv, int64_t begin, int64_t end,
                    int64_t position, float scale);

// A head's rows in qkv of sequence b: query heads are 0 to H - 1, then come keys, then values.
HeadRows packed_head(const Tensor& qkv, const Heads& heads, int64_t b, int64_t head);
HeadRows output_head(const Tensor& y, const Heads& heads, int64_t b, int64_t head);
float score_scale(const Heads& heads);

}  // namespace lockstep::kernels::cpu
