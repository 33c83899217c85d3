#include "kernels/cpu/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/gemm_fp32.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"

namespace lockstep::kernels::cpu {
namespace {

LOCKSTEP_CLONES void scale_run(float* x, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

// Calls f(row, rows, keys) for strips of queries, in order: what rows [row, row + rows) see lies
// within the first `keys` keys, more than those of the strip before. Strips are short where the
// number of keys grows, on the diagonal.
template <class F>
void for_strips(const TileProducts& tile, F&& f) {
  constexpr int64_t kStrip = 16;
  for (int64_t row = 0; row < kTileQueries;) {
    const int64_t keys = std::min(tile.n, round_up(tile.seen + row + kStrip - 1, kStrip));
    const int64_t rows = keys == tile.n ? kTileQueries - row : kStrip;
    f(row, rows, keys);
    row += rows;
  }
}

// Rows [row, row + count) of a head, at tokens [first, first + count) of one tile of queries,
// against all keys up to each query's own.
template <class T, class P>
void attend_tile(const QueryHead& head, const KeysAndValues& kv, int64_t row, int64_t first,
                 int64_t count, float scale) {
  static thread_local Scratch query_scratch, score_scratch, probability_scratch, output_scratch;
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
    const TileProducts products{kv.head_dim, kv.type, n, first - key + 1};
    products.scores(scores, q, kv.key(key));
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
    products.weighted_sum(output, weights, kv.value(key), key > 0);
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

void TileProducts::scores(float* scores_out, const void* a, const void* b) const {
  if (type != DType::fp32) {
    gemm({.m = kTileQueries,
          .n = n,
          .k = head_dim,
          .a_stride = head_dim,
          .b_stride = head_dim,
          .c_stride = kTileKeys,
          .b_transposed = true,
          .inputs = type},
         a, b, scores_out);
    return;
  }
  for_strips(*this, [&](int64_t row, int64_t rows, int64_t keys) {
    for (int64_t key = 0; key < keys; key += kKeyStep) {
      gemm_fp32({.m = rows,
                 .n = std::min(kKeyStep, keys - key),
                 .k = head_dim,
                 .a = static_cast<const float*>(a) + row * head_dim,
                 .a_row = head_dim,
                 .a_column = 1,
                 .b = static_cast<const float*>(b) + key * head_dim,
                 .b_stride = kKeyStep,
                 .c = scores_out + row * kTileKeys + key,
                 .c_stride = kTileKeys});
    }
  });
}

void TileProducts::weighted_sum(float* out, const void* weights, const void* rows,
                                bool accumulate) const {
  if (type != DType::fp32) {
    gemm({.m = kTileQueries,
          .n = head_dim,
          .k = n,
          .a_stride = kTileKeys,
          .b_stride = head_dim,
          .c_stride = head_dim,
          .accumulate = accumulate,
          .inputs = type},
         weights, rows, out);
    return;
  }
  for_strips(*this, [&](int64_t row, int64_t count, int64_t keys) {
    gemm_fp32({.m = count,
               .n = head_dim,
               .k = keys,
               .a = static_cast<const float*>(weights) + row * kTileKeys,
               .a_row = kTileKeys,
               .a_column = 1,
               .b = static_cast<const float*>(rows),
               .b_stride = head_dim,
               .c = out + row * head_dim,
               .c_stride = head_dim,
               .accumulate = accumulate});
  });
}

void TileProducts::add_transposed(float* out, const void* weights, const void* rows) const {
  if (type != DType::fp32) {
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
    return;
  }
  int64_t key = 0;
  for_strips(*this, [&](int64_t row, int64_t, int64_t keys) {
    gemm_fp32({.m = keys - key,
               .n = head_dim,
               .k = kTileQueries - row,
               .a = static_cast<const float*>(weights) + row * kTileKeys + key,
               .a_row = 1,
               .a_column = kTileKeys,
               .b = static_cast<const float*>(rows) + row * head_dim,
               .b_stride = head_dim,
               .c = out + key * head_dim,
               .c_stride = head_dim,
               .accumulate = true});
    key = keys;
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
