#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/range.h"
#include "core/thread_pool.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/dots.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"

namespace lockstep::kernels::cpu {
namespace {

// Queries a task of the forward pass: it gathers the keys before its last query once.
constexpr int64_t kSegment = 8 * kTileQueries;

// Up to this many new tokens, reading the caches is what costs: queries go one by one.
constexpr int64_t kFewQueries = 4;

LOCKSTEP_CLONES void scale_run(float* x, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

template <class T>
LOCKSTEP_CLONES float dot(const T* a, const T* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += to_float(a[i]) * to_float(b[i]);
  return sum;
}

// Calls f(Tag<T>, Tag<P>): the element type, and the type that its products are made in.
template <class F>
void with_types(DType dtype, F&& f) {
  with_float_type(dtype, [&](auto tag) {
    if (product_type(dtype) == dtype) return f(tag, tag);
    f(tag, Tag<float>{});
  });
}

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
int64_t tile_keys(int64_t first, int64_t last) {
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

// One tile of queries, at tokens [first, first + count), against all keys up to each query's own.
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

// Rows [begin, end) of a head, the first row at token `position`.
void attend_segment(const QueryHead& head, const KeysAndValues& kv, int64_t begin, int64_t end,
                    int64_t position, float scale) {
  with_types(head.q.dtype, [&](auto element, auto product) {
    for (int64_t row = begin; row < end; row += kTileQueries) {
      attend_tile<typename decltype(element)::type, typename decltype(product)::type>(
          head, kv, row, position + row, std::min(kTileQueries, end - row), scale);
    }
  });
}

// A head's rows in qkv of sequence b: query heads are 0 to H - 1, then come keys, then values.
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

KeysAndValues gather_keys_and_values(const HeadRows& keys, const HeadRows& values, int64_t count,
                                     int64_t head_dim) {
  static thread_local Scratch key_scratch, value_scratch;
  const DType type = product_type(keys.dtype);
  const int64_t filled = round_up(count, kKeyStep);
  const void* gathered_keys = gather(key_scratch, keys, count, filled, head_dim, type);
  const void* gathered_values = gather(value_scratch, values, count, filled, head_dim, type);
  return {static_cast<const char*>(gathered_keys), static_cast<const char*>(gathered_values),
          head_dim, type};
}

KeysAndValues gather_keys_and_values(const Tensor& qkv, const Heads& heads, int64_t b, int64_t kv,
                                     int64_t count) {
  return gather_keys_and_values(
      packed_head(qkv, heads, b, heads.num_heads + kv),
      packed_head(qkv, heads, b, heads.num_heads + heads.num_kv_heads + kv), count, heads.head_dim);
}

void check_shapes(const Tensor& y, const Tensor& lse, const Tensor& qkv, const Heads& heads) {
  CHECK(heads.num_heads > 0 && heads.num_kv_heads > 0 && heads.head_dim > 0 &&
        heads.num_heads % heads.num_kv_heads == 0);
  CHECK(qkv.shape().rank() == 3 && qkv.cols() == heads.packed() && y.shape().rank() == 3 &&
            y.rows() == qkv.rows() && y.cols() == heads.num_heads * heads.head_dim &&
            lse.size() == qkv.rows() * heads.num_heads,
        "y {}, lse {}, qkv {}", y.shape().to_string(), lse.shape().to_string(),
        qkv.shape().to_string());
  CHECK(y.dtype() == qkv.dtype() && lse.dtype() == DType::fp32);
}

// Gradients of one key-value head of one sequence and of the query heads that read it, in order.
template <class T, class P>
class BackwardTask {
 public:
  BackwardTask(const Tensor& dqkv, const Tensor& dy, const Tensor& y, const Tensor& lse,
               const Tensor& qkv, const Heads& heads, const DropoutMask& mask, int64_t b,
               int64_t kv)
      : dqkv_(dqkv),
        dy_(dy),
        y_(y),
        lse_(lse),
        qkv_(qkv),
        heads_(heads),
        mask_(mask),
        b_(b),
        kv_(kv),
        products_{heads.head_dim, kDTypeOf<P>} {}

  void run() {
    const int64_t tokens = qkv_.dim(1), head_dim = heads_.head_dim;
    const int64_t group = heads_.num_heads / heads_.num_kv_heads;
    const int64_t filled = round_up(tokens, kKeyStep) * head_dim;
    static thread_local Scratch key_scratch, value_scratch;
    dkeys_ = key_scratch.get<float>(filled), dvalues_ = value_scratch.get<float>(filled);
    std::fill_n(dkeys_, filled, 0.0f);
    std::fill_n(dvalues_, filled, 0.0f);
    keys_and_values_ = gather_keys_and_values(qkv_, heads_, b_, kv_, tokens);
    for (int64_t head = kv_ * group; head < (kv_ + 1) * group; head++) {
      for (int64_t first = 0; first < tokens; first += kTileQueries) {
        tile(head, first, std::min(kTileQueries, tokens - first));
      }
    }
    const int64_t key_head = heads_.num_heads + kv_, value_head = key_head + heads_.num_kv_heads;
    scatter(packed_head(dqkv_, heads_, b_, key_head), dkeys_, tokens, head_dim,
            score_scale(heads_));
    scatter(packed_head(dqkv_, heads_, b_, value_head), dvalues_, tokens, head_dim, 1.0f);
  }

 private:
  // Of queries [first, first + count) of one head.
  void tile(int64_t head, int64_t first, int64_t count) {
    static thread_local Scratch query_scratch, dy_scratch, score_scratch, gradient_scratch,
        probability_scratch, score_gradient_scratch, dquery_scratch;
    const int64_t tokens = qkv_.dim(1), head_dim = heads_.head_dim;
    const HeadRows dy_rows = output_head(dy_, heads_, b_, head).from(first);
    const HeadRows y_rows = output_head(y_, heads_, b_, head).from(first);
    const void* q = gather(query_scratch, packed_head(qkv_, heads_, b_, head).from(first), count,
                           kTileQueries, head_dim, kDTypeOf<P>);
    const void* dy = gather(dy_scratch, dy_rows, count, kTileQueries, head_dim, kDTypeOf<P>);
    constexpr int64_t kTile = kTileQueries * kTileKeys;
    float* scores = score_scratch.get<float>(kTile);
    float* gradient = gradient_scratch.get<float>(kTile);
    P* weights = probability_scratch.get<P>(kTile);
    P* score_gradient = score_gradient_scratch.get<P>(kTile);
    float* dquery = dquery_scratch.get<float>(kTileQueries * head_dim);
    const float* lse = lse_.as<float>() + (b_ * heads_.num_heads + head) * tokens + first;
    const ProbabilityMask mask(mask_, b_, head, tokens);
    // Rows that fill the tile up stay zero.
    std::fill(weights + count * kTileKeys, weights + kTile, P{});
    std::fill(score_gradient + count * kTileKeys, score_gradient + kTile, P{});
    float delta[kTileQueries];  // sum_u p[u] * (dy . v[u]) = dy . y
    for (int64_t r = 0; r < count; r++) {
      delta[r] = dot(static_cast<const T*>(dy_rows.from(r).data),
                     static_cast<const T*>(y_rows.from(r).data), head_dim);
    }

    for (int64_t key = 0; key < first + count; key += kTileKeys) {
      const int64_t n = tile_keys(key, first + count - 1);
      products_.scores(scores, q, keys_and_values_.key(key), n);
      products_.scores(gradient, dy, keys_and_values_.value(key), n);
      for (int64_t r = 0; r < count; r++) {
        const int64_t row = r * kTileKeys, valid = std::min(first + r - key + 1, n);
        probabilities_and_gradient<T, P>(weights + row, score_gradient + row, scores + row,
                                         gradient + row, mask.factors(first + r, key, valid),
                                         score_scale(heads_), lse[r], delta[r], valid, n);
      }
      products_.add_transposed(dvalues_ + key * head_dim, weights, dy, n);
      products_.add_transposed(dkeys_ + key * head_dim, score_gradient, q, n);
      products_.weighted_sum(dquery, score_gradient, keys_and_values_.key(key), n, key > 0);
    }
    scatter(packed_head(dqkv_, heads_, b_, head).from(first), dquery, count, head_dim,
            score_scale(heads_));
  }

  const Tensor &dqkv_, &dy_, &y_, &lse_, &qkv_;
  const Heads& heads_;
  const DropoutMask& mask_;
  const int64_t b_, kv_;
  const TileProducts products_;
  KeysAndValues keys_and_values_{};
  float* dkeys_ = nullptr;  // (T, D), filled up to whole tiles
  float* dvalues_ = nullptr;
};

// A key-value head's rows in a cache (K, capacity, D).
HeadRows cached_head(const Tensor& cache, int64_t kv) {
  const int64_t capacity = cache.dim(1), head_dim = cache.dim(2);
  return HeadRows{cache.data(), cache.dtype(), head_dim}.from(kv * capacity);
}

// Copies the keys and values of new tokens to their places in the caches.
void extend_caches(const Tensor& key_cache, const Tensor& value_cache, const Tensor& qkv,
                   const Heads& heads, int64_t position) {
  const auto row_bytes = static_cast<size_t>(heads.head_dim * size_bytes(qkv.dtype()));
  for (int64_t kv = 0; kv < heads.num_kv_heads; kv++) {
    const HeadRows keys = packed_head(qkv, heads, 0, heads.num_heads + kv);
    const HeadRows values = packed_head(qkv, heads, 0, heads.num_heads + heads.num_kv_heads + kv);
    for (int64_t n = 0; n < qkv.dim(1); n++) {
      std::memcpy(cached_head(key_cache, kv).from(position + n).data, keys.from(n).data, row_bytes);
      std::memcpy(cached_head(value_cache, kv).from(position + n).data, values.from(n).data,
                  row_bytes);
    }
  }
}

// One query against `count` keys, read where they are.
template <class T>
void attend_query(const HeadRows& y, const HeadRows& q, const HeadRows& keys,
                  const HeadRows& values, int64_t count, int64_t head_dim, float scale) {
  static thread_local Scratch score_scratch, output_scratch;
  float* scores = score_scratch.get<float>(count);
  float* output = output_scratch.get<float>(head_dim);
  dots(scores, static_cast<const T*>(q.data), static_cast<const T*>(keys.data), keys.stride, count,
       head_dim);
  const double sum = exponentials(scores, scale, scale * maximum(scores, count), count);
  weighted_sum(output, scores, static_cast<const T*>(values.data), values.stride, count, head_dim);
  scatter(y, output, 1, head_dim, static_cast<float>(1 / sum));
}

}  // namespace

void attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv, const Heads& heads,
                       const DropoutMask& mask, Stream&) {
  check_shapes(y, lse, qkv, heads);
  const int64_t sequences = qkv.dim(0), tokens = qkv.dim(1);
  const int64_t group = heads.num_heads / heads.num_kv_heads;
  const int64_t kv_heads = sequences * heads.num_kv_heads;
  const int64_t segments = pieces(tokens, kSegment);
  // The longest segments first, so that threads end together.
  parallel_for(segments * kv_heads, 1, [&](int64_t task, int64_t) {
    const int64_t segment = segments - 1 - task / kv_heads;
    const int64_t b = task % kv_heads / heads.num_kv_heads, kv = task % heads.num_kv_heads;
    const int64_t end = std::min(tokens, (segment + 1) * kSegment);
    const KeysAndValues rows = gather_keys_and_values(qkv, heads, b, kv, end);
    for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
      const QueryHead query{packed_head(qkv, heads, b, head), output_head(y, heads, b, head),
                            lse.as<float>() + (b * heads.num_heads + head) * tokens,
                            ProbabilityMask(mask, b, head, tokens)};
      attend_segment(query, rows, segment * kSegment, end, 0, score_scale(heads));
    }
  });
}

void attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& y, const Tensor& lse,
                        const Tensor& qkv, const Heads& heads, const DropoutMask& mask, Stream&) {
  check_shapes(y, lse, qkv, heads);
  CHECK(dqkv.shape() == qkv.shape() && dqkv.dtype() == qkv.dtype() && dy.size() == y.size() &&
        dy.dtype() == y.dtype());
  const int64_t tasks = qkv.dim(1) == 0 ? 0 : qkv.dim(0) * heads.num_kv_heads;
  parallel_for(tasks, 1, [&](int64_t task, int64_t) {
    with_types(qkv.dtype(), [&](auto element, auto product) {
      BackwardTask<typename decltype(element)::type, typename decltype(product)::type>(
          dqkv, dy, y, lse, qkv, heads, mask, task / heads.num_kv_heads, task % heads.num_kv_heads)
          .run();
    });
  });
}

void attention_with_cache(const Tensor& y, const Tensor& key_cache, const Tensor& value_cache,
                          const Tensor& qkv, const Heads& heads, int64_t position, Stream&) {
  const int64_t tokens = qkv.rows(), head_dim = heads.head_dim;
  const int64_t group = heads.num_heads / heads.num_kv_heads;
  const Tensor new_rows = qkv.reshape({1, tokens, heads.packed()});
  const Tensor outputs = y.reshape({1, tokens, heads.num_heads * head_dim});
  for (const Tensor& cache : {key_cache, value_cache}) {
    CHECK(cache.shape().rank() == 3 && cache.dim(0) == heads.num_kv_heads &&
              cache.dim(2) == head_dim && cache.dtype() == qkv.dtype(),
          "cache {}", cache.shape().to_string());
    CHECK(position >= 0 && position + tokens <= cache.dim(1), "{} tokens from position {} on in {}",
          tokens, position, cache.shape().to_string());
  }
  extend_caches(key_cache, value_cache, new_rows, heads, position);

  if (tokens <= kFewQueries) {
    parallel_for(heads.num_heads * tokens, 1, [&](int64_t task, int64_t) {
      const int64_t head = task / tokens, n = task % tokens;
      with_float_type(qkv.dtype(), [&](auto tag) {
        attend_query<typename decltype(tag)::type>(
            output_head(outputs, heads, 0, head).from(n),
            packed_head(new_rows, heads, 0, head).from(n), cached_head(key_cache, head / group),
            cached_head(value_cache, head / group), position + n + 1, head_dim, score_scale(heads));
      });
    });
    return;
  }
  const int64_t segments = pieces(tokens, kSegment);
  parallel_for(segments * heads.num_kv_heads, 1, [&](int64_t task, int64_t) {
    const int64_t begin = (segments - 1 - task / heads.num_kv_heads) * kSegment;
    const int64_t kv = task % heads.num_kv_heads, end = std::min(tokens, begin + kSegment);
    const KeysAndValues rows = gather_keys_and_values(
        cached_head(key_cache, kv), cached_head(value_cache, kv), position + end, head_dim);
    for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
      const QueryHead query{packed_head(new_rows, heads, 0, head),
                            output_head(outputs, heads, 0, head), nullptr, ProbabilityMask()};
      attend_segment(query, rows, begin, end, position, score_scale(heads));
    }
  });
}

}  // namespace lockstep::kernels::cpu
