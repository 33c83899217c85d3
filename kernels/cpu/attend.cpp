#include "kernels/cpu/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"

namespace lockstep::kernels::cpu {
namespace {

LOCKSTEP_CLONES void scale_run(float* x, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

// Rows [row, row + count) of a head, at tokens [first, first + count) of one tile of queries,
// against all keys up to each query's own.
template <class T, class P>
void attend_tile(const QueryHead& head, const KeysAndValues& kv, int64_t row, int64_t first,
                 int64_t count, float scale) {
  static thread_local Scratch query_scratch, score_scratch, probability_scratch, output_scratch;
  const TileProducts products{kv.head_dim, kv.type};
  const void* q =
      gather(query_scratch, head.q.from(row), count, kTileQueries, kv.head_dim, kv.type);
  float* scores = score_scratch.get<float>(kTileQueries * kTileKeys);
  P* weights = probability_scratch.get<P>(kTileQueries * kTileKeys);
  float* output = output_scratch.get<float>(kTileQueries * kv.head_dim);
  float largest[kTileQueries], sum[kTileQueries] = {};
  std::fill_n(largest, kTileQueries, -std::numeric_limits<float>::infinity());

  const int64_t last = first + count - 1;
  for (int64_t key = 0; key <= last; key += kTileKeys) {
    const int64_t n = tile_keys(key, last);
    products.scores(scores, q, kv.key(key), n);
    for (int64_t r = 0; r < count; r++) {
      float* row_scores = scores + r * kTileKeys;
      P* row_weights = weights + r * kTileKeys;
      const int64_t valid = std::clamp<int64_t>(first + r - key + 1, 0, n);
      const float maximum_so_far = std::max(largest[r], scale * maximum(row_scores, valid));
      const float correction = key == 0 ? 0 : std::exp(largest[r] - maximum_so_far);
      largest[r] = maximum_so_far;
      sum[r] = sum[r] * correction + probabilities<T, P>(row_weights, row_scores,
                                                         head.mask.factors(first + r, key, valid),
                                                         scale, maximum_so_far, valid, n);
      if (key > 0) scale_run(output + r * kv.head_dim, correction, kv.head_dim);
    }
    products.weighted_sum(output, weights, kv.value(key), n, key > 0);
  }
  for (int64_t r = 0; r < count; r++) {
    scatter(head.y.from(row + r), output + r * kv.head_dim, 1, kv.head_dim, 1.0f / sum[r]);
    if (head.lse != nullptr) head.lse[row + r] = largest[r] + std::log(sum[r]);
  }
}

}  // namespace

void attend_segment(const QueryHead& head, const KeysAndValues& kv, int64_t begin, int64_t end,
                    int64_t position, float scale) {
  with_product_types(head.q.dtype, [&](auto element, auto product) {
    for (int64_t row = begin; row < end;) {
      const int64_t first = position + row;
      const int64_t count = std::min(kTileQueries - first % kTileQueries, end - row);
      attend_tile<typename decltype(element)::type, typename decltype(product)::type>(
          head, kv, row, first, count, scale);
      row += count;
    }
  });
}

HeadRows packed_head(const Tensor& qkv, const Heads& heads, int64_t b, int64_t head) {
  const int64_t tokens = qkv.dim(1);
  const HeadRows rows{qkv.data(), qkv.dtype(), heads.packed()};
  return {static_cast<char*>(rows.from(b * tokens).data) +
              head * heads.head_dim * size_bytes(qkv.dtype()),
          qkv.dtype(), heads.packed()};
}

HeadRows output_head(const Tensor& y, const Heads& heads, int64_t b, int64_t head) {
  const int64_t stride = heads.num_heads * heads.head_dim, tokens = y.dim(1);
  return {static_cast<char*>(y.data()) +
              (b * tokens * stride + head * heads.head_dim) * size_bytes(y.dtype()),
          y.dtype(), stride};
}

float score_scale(const Heads& heads) {
  return 1.0f / std::sqrt(static_cast<float>(heads.head_dim));
}

}  // namespace lockstep::kernels::cpu
