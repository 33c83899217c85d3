#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/profile.h"
#include "core/range.h"
#include "core/thread_pool.h"
#include "kernels/cpu/attend.h"
#include "kernels/cpu/dots.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

// Queries a task of the forward pass: it gathers the keys before its last query once.
constexpr int64_t kSegment = 8 * kTileQueries;

template <class T>
LOCKSTEP_CLONES float dot(const T* a, const T* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += to_float(a[i]) * to_float(b[i]);
  return sum;
}

// Rows of `head` of the `count` first tokens of sequence b, in the type that they are multiplied
// in.
const void* gather_head(Scratch& scratch, const Tensor& qkv, const Heads& heads, int64_t b,
                        int64_t head, int64_t count) {
  return gather(scratch, packed_head(qkv, heads, b, head), count, round_up(count, kKeyStep),
                heads.head_dim, product_type(qkv.dtype()));
}

KeysAndValues gather_keys_and_values(const Tensor& qkv, const Heads& heads, int64_t b, int64_t kv,
                                     int64_t count) {
  static thread_local Scratch key_scratch, column_scratch, value_scratch;
  const DType type = product_type(qkv.dtype());
  const int64_t head = heads.num_heads + kv;
  const void* keys = gather_head(key_scratch, qkv, heads, b, head, count);
  return {as_columns(column_scratch, keys, round_up(count, kKeyStep), heads.head_dim, type),
          gather_head(value_scratch, qkv, heads, b, head + heads.num_kv_heads, count),
          heads.head_dim, type};
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
        kv_(kv) {}

  void run() {
    const int64_t tokens = qkv_.dim(1), head_dim = heads_.head_dim;
    const int64_t group = heads_.num_heads / heads_.num_kv_heads;
    const int64_t key_head = heads_.num_heads + kv_, value_head = key_head + heads_.num_kv_heads;
    const int64_t filled = round_up(tokens, kKeyStep), size = filled * head_dim;
    static thread_local Scratch dkey_scratch, dvalue_scratch;
    dkeys_ = dkey_scratch.get<float>(size), dvalues_ = dvalue_scratch.get<float>(size);
    std::fill_n(dkeys_, size, 0.0f);
    std::fill_n(dvalues_, size, 0.0f);
    static thread_local Scratch key_scratch, key_column_scratch, value_scratch,
        value_column_scratch;
    const void* keys = gather_head(key_scratch, qkv_, heads_, b_, key_head, tokens);
    const void* values = gather_head(value_scratch, qkv_, heads_, b_, value_head, tokens);
    keys_ = static_cast<const P*>(keys);
    key_columns_ =
        static_cast<const P*>(as_columns(key_column_scratch, keys, filled, head_dim, kDTypeOf<P>));
    value_columns_ = static_cast<const P*>(
        as_columns(value_column_scratch, values, filled, head_dim, kDTypeOf<P>));
    for (int64_t head = kv_ * group; head < (kv_ + 1) * group; head++) {
      for (int64_t first = 0; first < tokens; first += kTileQueries) {
        tile(head, first, std::min(kTileQueries, tokens - first));
      }
    }
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
      const TileProducts products{head_dim, kDTypeOf<P>, n, first - key + 1};
      products.scores(scores, q, key_columns_ + key * head_dim);
      products.scores(gradient, dy, value_columns_ + key * head_dim);
      for (int64_t r = 0; r < count; r++) {
        const int64_t row = r * kTileKeys, valid = std::min(first + r - key + 1, n);
        probabilities_and_gradient<T, P>(weights + row, score_gradient + row, scores + row,
                                         gradient + row, mask.factors(first + r, key, valid),
                                         score_scale(heads_), lse[r], delta[r], valid, n);
      }
      products.add_transposed(dvalues_ + key * head_dim, weights, dy);
      products.add_transposed(dkeys_ + key * head_dim, score_gradient, q);
      products.weighted_sum(dquery, score_gradient, keys_ + key * head_dim, key > 0);
    }
    scatter(packed_head(dqkv_, heads_, b_, head).from(first), dquery, count, head_dim,
            score_scale(heads_));
  }

  const Tensor &dqkv_, &dy_, &y_, &lse_, &qkv_;
  const Heads& heads_;
  const DropoutMask& mask_;
  const int64_t b_, kv_;
  const P *keys_ = nullptr, *key_columns_ = nullptr, *value_columns_ = nullptr;  // gathered
  float* dkeys_ = nullptr;  // (T, D), filled up to whole tiles
  float* dvalues_ = nullptr;
};

// The pages of sequences in one layer.
class Pages {
 public:
  Pages(const Heads& heads, const PagePlace& place, DType dtype)
      : heads_(heads),
        size_(place.page_size),
        dtype_(dtype),
        layer_rows_(2 * heads.num_kv_heads * place.page_size),
        first_row_(place.layer * layer_rows_) {}

  // A key-value head's rows in one page: keys, values.
  HeadRows keys(const CachedSequence& sequence, int64_t page, int64_t kv) const {
    return HeadRows{sequence.pages[page], dtype_, heads_.head_dim}.from(first_row_ + kv * size_);
  }
  HeadRows values(const CachedSequence& sequence, int64_t page, int64_t kv) const {
    return keys(sequence, page, kv + heads_.num_kv_heads);
  }

  // Calls f(page, first, count) for each page of the first `tokens` tokens: its tokens
  // [first, first + count).
  template <class F>
  void for_each(int64_t tokens, F&& f) const {
    for (int64_t first = 0; first < tokens; first += size_) {
      f(first / size_, first, std::min(size_, tokens - first));
    }
  }

  // Copies keys and values of new tokens, rows `row` and on of qkv (1, N, ...), to their places.
  void extend(const CachedSequence& sequence, const Tensor& qkv, int64_t row) const {
    const auto row_bytes = static_cast<size_t>(heads_.head_dim * size_bytes(dtype_));
    for (int64_t n = 0; n < sequence.tokens; n++) {
      const int64_t page = (sequence.position + n) / size_, at = (sequence.position + n) % size_;
      for (int64_t head = 0; head < 2 * heads_.num_kv_heads; head++) {
        std::memcpy(keys(sequence, page, head).from(at).data,
                    packed_head(qkv, heads_, 0, heads_.num_heads + head).from(row + n).data,
                    row_bytes);
      }
    }
  }

  KeysAndValues gather(const CachedSequence& sequence, int64_t kv, int64_t count) const {
    static thread_local Scratch key_scratch, column_scratch, value_scratch;
    const DType type = product_type(dtype_);
    const int64_t row_bytes = heads_.head_dim * size_bytes(type);
    const int64_t all = round_up(count, kKeyStep);
    char* all_keys = key_scratch.get<char>(all * row_bytes);
    char* all_values = value_scratch.get<char>(all * row_bytes);
    for_each(count, [&](int64_t page, int64_t first, int64_t n) {
      const int64_t filled = first + n == count ? all - first : n;
      cpu::gather(all_keys + first * row_bytes, keys(sequence, page, kv), n, filled,
                  heads_.head_dim, type);
      cpu::gather(all_values + first * row_bytes, values(sequence, page, kv), n, filled,
                  heads_.head_dim, type);
    });
    return {as_columns(column_scratch, all_keys, all, heads_.head_dim, type), all_values,
            heads_.head_dim, type};
  }

  // One query against the first `count` keys, read where they are.
  template <class T>
  void attend(const HeadRows& y, const HeadRows& q, const CachedSequence& sequence, int64_t kv,
              int64_t count) const {
    static thread_local Scratch score_scratch, output_scratch;
    const int64_t head_dim = heads_.head_dim;
    const float scale = score_scale(heads_);
    float* scores = score_scratch.get<float>(count);
    float* output = output_scratch.get<float>(head_dim);
    for_each(count, [&](int64_t page, int64_t first, int64_t n) {
      dots(scores + first, static_cast<const T*>(q.data),
           static_cast<const T*>(keys(sequence, page, kv).data), head_dim, n, head_dim);
    });
    const double sum = exponentials(scores, scale, scale * maximum(scores, count), count);
    std::fill_n(output, head_dim, 0.0f);
    for_each(count, [&](int64_t page, int64_t first, int64_t n) {
      add_weighted(output, scores + first, static_cast<const T*>(values(sequence, page, kv).data),
                   head_dim, n, head_dim);
    });
    scatter(y, output, 1, head_dim, static_cast<float>(1 / sum));
  }

 private:
  const Heads& heads_;
  const int64_t size_;
  const DType dtype_;
  const int64_t layer_rows_, first_row_;
};

// A piece of one sequence's new tokens, the first at `row` of all rows.
struct CachedPiece {
  const CachedSequence* sequence;
  int64_t row, begin, end;  // tokens [begin, end) of the new ones
};

// Pieces of at most `most` tokens; the last of each sequence first, as they have most to do.
std::vector<CachedPiece> cut(std::span<const CachedSequence> sequences, int64_t most) {
  std::vector<CachedPiece> all;
  int64_t row = 0;
  for (const CachedSequence& sequence : sequences) {
    for (int64_t begin = (sequence.tokens - 1) / most * most; begin >= 0 && sequence.tokens > 0;
         begin -= most) {
      all.push_back({&sequence, row, begin, std::min(sequence.tokens, begin + most)});
    }
    row += sequence.tokens;
  }
  return all;
}

void check_cache(const Tensor& y, const Tensor& qkv, const Heads& heads,
                 std::span<const CachedSequence> sequences, const PagePlace& place) {
  CHECK(qkv.cols() == heads.packed() && y.rows() == qkv.rows() &&
            y.cols() == heads.num_heads * heads.head_dim && y.dtype() == qkv.dtype(),
        "y {}, qkv {}", y.shape().to_string(), qkv.shape().to_string());
  CHECK(place.page_size > 0 && place.page_size % 4 == 0, "pages of {} tokens", place.page_size);
  int64_t tokens = 0;
  for (const CachedSequence& s : sequences) {
    const auto room = static_cast<int64_t>(s.pages.size()) * place.page_size;
    CHECK(s.position >= 0 && s.tokens >= 0 && s.position + s.tokens <= room,
          "{} tokens from position {} on in pages for {}", s.tokens, s.position, room);
    tokens += s.tokens;
  }
  CHECK(tokens == qkv.rows(), "{} new tokens, qkv {}", tokens, qkv.shape().to_string());
}

double product_flops(const Tensor& qkv, const Heads& heads) {
  return attention_product_flops(qkv.dim(0), heads.num_heads, heads.head_dim, qkv.dim(1));
}

}  // namespace

void attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv, const Heads& heads,
                       const DropoutMask& mask, Stream&) {
  check_shapes(y, lse, qkv, heads);
  const int64_t sequences = qkv.dim(0), tokens = qkv.dim(1);
  const int64_t group = heads.num_heads / heads.num_kv_heads;
  const int64_t kv_heads = sequences * heads.num_kv_heads;
  const int64_t segments = pieces(tokens, kSegment);
  const ProfileScope scope(
      {"attention_forward", bytes_of(y, lse, qkv), 2 * product_flops(qkv, heads), Unit::tensor});
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
  const ProfileScope scope({"attention_backward", bytes_of(dqkv, dy, y, lse, qkv),
                            5 * product_flops(qkv, heads), Unit::tensor});
  parallel_for(tasks, 1, [&](int64_t task, int64_t) {
    with_product_types(qkv.dtype(), [&](auto element, auto product) {
      BackwardTask<typename decltype(element)::type, typename decltype(product)::type>(
          dqkv, dy, y, lse, qkv, heads, mask, task / heads.num_kv_heads, task % heads.num_kv_heads)
          .run();
    });
  });
}

void attention_with_cache(const Tensor& y, const Tensor& qkv, const Heads& heads,
                          std::span<const CachedSequence> sequences, const PagePlace& place,
                          Rows rows, Stream&) {
  check_cache(y, qkv, heads, sequences, place);
  const Pages pages(heads, place, qkv.dtype());
  const int64_t tokens = qkv.rows(), group = heads.num_heads / heads.num_kv_heads;
  const Tensor new_rows = qkv.reshape({1, tokens, heads.packed()});
  const Tensor outputs = y.reshape({1, tokens, heads.num_heads * heads.head_dim});
  int64_t row = 0;
  for (const CachedSequence& sequence : sequences) {
    pages.extend(sequence, new_rows, row);
    row += sequence.tokens;
  }
  const auto query = [&](const CachedPiece& piece, int64_t head) {
    return QueryHead{packed_head(new_rows, heads, 0, head).from(piece.row),
                     output_head(outputs, heads, 0, head).from(piece.row), nullptr,
                     ProbabilityMask()};
  };

  if (rows == Rows::one_by_one) {
    const std::vector<CachedPiece> queries = cut(sequences, 1);
    const auto count = static_cast<int64_t>(queries.size());
    parallel_for(count * heads.num_heads, 1, [&](int64_t task, int64_t) {
      const CachedPiece& piece = queries[task / heads.num_heads];
      const int64_t head = task % heads.num_heads;
      const QueryHead of_head = query(piece, head);
      with_float_type(qkv.dtype(), [&](auto tag) {
        pages.attend<typename decltype(tag)::type>(
            of_head.y.from(piece.begin), of_head.q.from(piece.begin), *piece.sequence, head / group,
            piece.sequence->position + piece.end);
      });
    });
    return;
  }
  const std::vector<CachedPiece> segments = cut(sequences, kSegment);
  const auto count = static_cast<int64_t>(segments.size());
  parallel_for(count * heads.num_kv_heads, 1, [&](int64_t task, int64_t) {
    const CachedPiece& segment = segments[task / heads.num_kv_heads];
    const auto& [sequence, first_row, begin, end] = segment;
    const int64_t kv = task % heads.num_kv_heads;
    const KeysAndValues gathered = pages.gather(*sequence, kv, sequence->position + end);
    for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
      attend_segment(query(segment, head), gathered, begin, end, sequence->position,
                     score_scale(heads));
    }
  });
}

}  // namespace lockstep::kernels::cpu
