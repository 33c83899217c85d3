#pragma once
#include "kernels/attention.h"
#include "kernels/cpu/attention_tiles.h"

// Attention of one head's queries, tile by tile: what the forward pass and generation share, and of
// which backward makes the products again.
namespace lockstep::kernels::cpu {

// Products of one tile of a head: at most kTileQueries queries and kTileKeys keys. Score tiles have
// kTileKeys elements a row, whatever the number of keys.
struct TileProducts {
  int64_t head_dim;
  DType type;
  int64_t n;     // keys, a multiple of kKeyStep
  int64_t seen;  // keys that query 0 sees, the next sees one more; what none sees may be left out

  // scores (queries, n) = a (queries, D) . b (n, D), b as as_columns() leaves it. Undefined from
  // the next multiple of 16 after the last key that a query sees.
  void scores(float* scores_out, const void* a, const void* b) const;
  // out (queries, D) (+)= weights (queries, n) x rows (n, D); weights of keys not seen are zero.
  void weighted_sum(float* out, const void* weights, const void* rows, bool accumulate) const;
  // out (n, D) += weights (queries, n)^T x rows (queries, D), likewise.
  void add_transposed(float* out, const void* weights, const void* rows) const;
};

// Keys of a tile from `first` on, of which queries up to token `last` see the first.
inline int64_t tile_keys(int64_t first, int64_t last) {
  return std::min(kTileKeys, round_up(last + 1 - first, kKeyStep));
}

// Keys and values of a key-value head, gathered, as their products read them: keys as columns.
// Rows of zeros follow the last.
struct KeysAndValues {
  const void* keys;
  const void* values;
  int64_t head_dim;
  DType type;
  // From u on, a multiple of kKeyStep.
  const void* key(int64_t u) const { return from(keys, u); }
  const void* value(int64_t u) const { return from(values, u); }

 private:
  const void* from(const void* rows, int64_t u) const {
    return static_cast<const char*>(rows) + u * head_dim * size_bytes(type);
  }
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
