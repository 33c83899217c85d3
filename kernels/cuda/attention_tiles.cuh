#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/cuda/packs.cuh"
#include "kernels/work.h"

// What attention's kernels share: tiles of one head's rows in shared memory, in fp32 whatever the
// storage, and products of tiles. 256 threads stand 16 x 16 over a product (Tiles::rows x
// Tiles::cols): thread (ty, tx) has rows ty * kRowsEach + i and columns tx + 16 * j, so that a row
// belongs to half a warp, which alone writes and reads it.
namespace lockstep::kernels::cuda {

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kAttentionThreads = 256;
inline constexpr int kSide = 16;

// Sizes of tiles for heads of up to kHeadDim (64, 128 or 256). A block owns kRows rows and streams
// others past them, kCols at a time.
template <int kHeadDim>
struct Tiles {
  static constexpr int kRows = kHeadDim <= 128 ? 64 : 32;
  static constexpr int kCols = kHeadDim <= 64 ? 64 : 32;
  static constexpr int kRowsEach = kRows / kSide;
  static constexpr int kColsEach = kCols / kSide;
  static constexpr int kDimsEach = kHeadDim / kSide;  // of an output row, in quads 64 apart
  // Four more than a power of two: quads of rows that follow each other are in different banks.
  static constexpr int kStride = kHeadDim + 4;
  static constexpr int kWeightStride = kCols + 4;
  static constexpr int kOwned = kRows * kStride;  // floats of a tile
  static constexpr int kStreamed = kCols * kStride;
  static constexpr int kWeights = kRows * kWeightStride;
  static constexpr int kBlocks = kHeadDim <= 128 ? 2 : 1;  // a multiprocessor
  using Product = float[kRowsEach][kColsEach];
  using Output = float[kRowsEach][kDimsEach];
};

// Where rows of heads are: elements from one sequence, head or token to the next.
template <class T>
struct HeadRows {
  T* data;
  int64_t sequence, head, token;

  __device__ T* at(int64_t b, int64_t h, int64_t t) const {
    return data + b * sequence + h * head + t * token;
  }
};

struct AttentionSizes {
  int64_t sequences;
  int64_t tokens;  // queries a sequence
  int num_heads, num_kv_heads, head_dim;
  bool in_packs;  // each row of each operand is whole aligned packs
  float scale;    // of the scores

  __device__ int group() const { return num_heads / num_kv_heads; }
};

inline double product_flops(const AttentionSizes& sizes, int64_t position) {
  return attention_product_flops(sizes.sequences, sizes.num_heads, sizes.head_dim, sizes.tokens,
                                 position);
}

// What a block owns: a tile of rows of one head of one sequence. Blocks of one tile of all heads
// follow each other.
struct BlockRows {
  int64_t b;
  int head;
  int64_t tile;

  __device__ BlockRows(int64_t block, int heads, int64_t sequences)
      : b(block / heads % sequences),
        head(static_cast<int>(block % heads)),
        tile(block / heads / sequences) {}
};

// Elements [d, d + Pack<T>::kSize) of a row of head_dim elements; zeros follow its last.
template <class T>
__device__ Pack<T> load_pack(const T* row, int d, const AttentionSizes& sizes) {
  if (!sizes.in_packs) return load_pack<false>(row, d, sizes.head_dim);
  return d < sizes.head_dim ? load_pack<true>(row, d, sizes.head_dim) : Pack<T>{};
}

// tile (kRows, kHeadDim) = factor * the first `count` rows, `stride` elements apart; zeros follow.
template <int kRows, int kHeadDim, class T>
__device__ void load_tile(float* tile, const T* rows, int64_t stride, int64_t count,
                          const AttentionSizes& sizes, float factor = 1) {
  constexpr int kPacks = kHeadDim / Pack<T>::kSize;
#pragma unroll 2
  for (int n = static_cast<int>(threadIdx.x); n < kRows * kPacks; n += kAttentionThreads) {
    const int row = n / kPacks, d = n % kPacks * Pack<T>::kSize;
    Pack<T> pack{};
    if (row < count) pack = load_pack(rows + row * stride, d, sizes);
    float* to = tile + row * Tiles<kHeadDim>::kStride + d;
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i += 4) {
      Pack<float> quad;
#pragma unroll
      for (int k = 0; k < 4; k++) quad.value[k] = factor * widened(pack.value[i + k]);
      *reinterpret_cast<Pack<float>*>(to + i) = quad;
    }
  }
}

// The thread's part of owned (kRows, D) x streamed (kCols, D)^T. Sums go from the first component
// to the last: the same products have the same bits in forward and in backward.
template <int kHeadDim>
__device__ void multiply_rows(typename Tiles<kHeadDim>::Product& out, const float* owned,
                              const float* streamed, int head_dim) {
  using Tile = Tiles<kHeadDim>;
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
  const float* rows = owned + ty * Tile::kRowsEach * Tile::kStride;
  const float* cols = streamed + tx * Tile::kStride;
#pragma unroll
  for (int i = 0; i < Tile::kRowsEach; i++) {
#pragma unroll
    for (int j = 0; j < Tile::kColsEach; j++) out[i][j] = 0;
  }
#pragma unroll 1
  for (int d = 0; d < head_dim; d += 4) {
    Pack<float> a[Tile::kRowsEach], b[Tile::kColsEach];
#pragma unroll
    for (int i = 0; i < Tile::kRowsEach; i++) {
      a[i] = *reinterpret_cast<const Pack<float>*>(rows + i * Tile::kStride + d);
    }
#pragma unroll
    for (int j = 0; j < Tile::kColsEach; j++) {
      b[j] = *reinterpret_cast<const Pack<float>*>(cols + j * kSide * Tile::kStride + d);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
      for (int i = 0; i < Tile::kRowsEach; i++) {
#pragma unroll
        for (int j = 0; j < Tile::kColsEach; j++) out[i][j] += a[i].value[k] * b[j].value[k];
      }
    }
  }
}

// Puts the thread's part of a product where add_weighted() reads it. Between the two, and before
// the next, the half warp has to meet.
template <int kHeadDim>
__device__ void store_weights(float* weights, const typename Tiles<kHeadDim>::Product& product) {
  using Tile = Tiles<kHeadDim>;
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < Tile::kRowsEach; i++) {
#pragma unroll
    for (int j = 0; j < Tile::kColsEach; j++) {
      weights[(ty * Tile::kRowsEach + i) * Tile::kWeightStride + tx + kSide * j] = product[i][j];
    }
  }
}

// The thread's part of output (kRows, D) += weights (kRows, kCols) x streamed (kCols, D):
// components tx * 4 + 64 * quad + k of its rows. Adds up from the first column to the last.
template <int kHeadDim>
__device__ void add_weighted(typename Tiles<kHeadDim>::Output& output, const float* weights,
                             const float* streamed) {
  using Tile = Tiles<kHeadDim>;
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
  const float* rows = weights + ty * Tile::kRowsEach * Tile::kWeightStride;
#pragma unroll 1
  for (int col = 0; col < Tile::kCols; col += 4) {
    Pack<float> a[Tile::kRowsEach];
#pragma unroll
    for (int i = 0; i < Tile::kRowsEach; i++) {
      a[i] = *reinterpret_cast<const Pack<float>*>(rows + i * Tile::kWeightStride + col);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float* values = streamed + (col + k) * Tile::kStride + tx * 4;
#pragma unroll
      for (int d = 0; d < Tile::kDimsEach; d += 4) {
        const auto b = *reinterpret_cast<const Pack<float>*>(values + d * kSide);
#pragma unroll
        for (int i = 0; i < Tile::kRowsEach; i++) {
#pragma unroll
          for (int e = 0; e < 4; e++) output[i][d + e] += a[i].value[k] * b.value[e];
        }
      }
    }
  }
}

// rows[i] = factor * the thread's part of row i of an output, for the first `count` rows of a tile.
template <int kHeadDim, class T>
__device__ void store_row(T* row, const float (&output)[Tiles<kHeadDim>::kDimsEach], float factor,
                          const AttentionSizes& sizes) {
  struct alignas(4 * sizeof(T)) Quad {
    T value[4];
  };
  const int tx = static_cast<int>(threadIdx.x) % kSide;
#pragma unroll
  for (int i = 0; i < Tiles<kHeadDim>::kDimsEach; i += 4) {
    const int d = tx * 4 + i * kSide;
    if (sizes.in_packs) {
      Quad quad;
#pragma unroll
      for (int e = 0; e < 4; e++) quad.value[e] = rounded<T>(factor * output[i + e]);
      if (d < sizes.head_dim) *reinterpret_cast<Quad*>(row + d) = quad;
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (d + e < sizes.head_dim) row[d + e] = rounded<T>(factor * output[i + e]);
      }
    }
  }
}

// The last key that a query reads, counted from a tile's first key, where `key` may be far behind
// it.
template <int kHeadDim>
__device__ int last_in_tile(int64_t key) {
  return static_cast<int>(std::min<int64_t>(key, Tiles<kHeadDim>::kRows));
}

// Dropout of probabilities. The place of p[h,t,u] within a sequence is (h * T + t) * T + u.
struct ProbabilityMask {
  DropoutMask words;
  uint32_t threshold = 0;
  float scale = 1;

  explicit ProbabilityMask(const DropoutMask& mask)
      : words(mask), threshold(mask.threshold()), scale(mask.scale()) {}
};

// Which probabilities of a tile of queries by keys are kept: four bits a byte, a quad of places
// each, so that a random number serves its four places. Keys begin at a multiple of four.
template <int kQueries, int kKeys>
class KeptTile {
 public:
  static constexpr int kQuads = kKeys / 4 + 1;
  static constexpr int kBytes = (kQueries * kQuads + 15) / 16 * 16;

  __device__ KeptTile(void* shared, const ProbabilityMask& mask)
      : kept_(static_cast<unsigned char*>(shared)), mask_(mask) {}

  __device__ void fill(const AttentionSizes& sizes, int64_t b, int64_t head, int64_t first_query,
                       int64_t first_key) {
    if (!mask_.words.active()) return;
    const int64_t first_row = head * sizes.tokens + first_query;
    row_ = static_cast<unsigned>(first_row), tokens_ = static_cast<unsigned>(sizes.tokens);
    const uint64_t key = mask_.words.key();
#pragma unroll 1
    for (int n = static_cast<int>(threadIdx.x); n < kQueries * kQuads; n += kAttentionThreads) {
      const int64_t place = (first_row + n / kQuads) * sizes.tokens + first_key;
      const PhiloxCounter words = mask_.words.words(key, static_cast<uint32_t>(b),
                                                    static_cast<uint64_t>(place / 4 + n % kQuads));
      unsigned bits = 0;
#pragma unroll
      for (int w = 0; w < 4; w++) bits |= (words[w] >= mask_.threshold ? 1u : 0u) << w;
      kept_[n] = static_cast<unsigned char>(bits);
    }
  }

  // 1 / (1 - p) or 0, of places in the tile, once all threads have filled it.
  __device__ float factor(int query, int key) const {
    if (!mask_.words.active()) return 1;
    const unsigned place = ((row_ + query) * tokens_ & 3) + key;
    const unsigned bits = kept_[query * kQuads + place / 4];
    return bits >> place % 4 & 1 ? mask_.scale : 0.0f;
  }

 private:
  unsigned char* const kept_;
  const ProbabilityMask& mask_;
  unsigned row_ = 0, tokens_ = 0;  // modulo 2^32: what matters is the remainder by 4
};

// The rows of a packed token (H + 2K heads), from its head `first` on.
template <class T>
HeadRows<T> packed_rows(T* qkv, int64_t tokens, const Heads& heads, int64_t first) {
  return {qkv + first * heads.head_dim, tokens * heads.packed(), heads.head_dim, heads.packed()};
}
template <class T>
HeadRows<T> output_rows(T* y, int64_t tokens, const Heads& heads) {
  const int64_t width = heads.num_heads * heads.head_dim;
  return {y, tokens * width, heads.head_dim, width};
}

inline AttentionSizes attention_sizes(int64_t sequences, int64_t tokens, const Heads& heads,
                                      bool packs) {
  return {sequences,
          tokens,
          static_cast<int>(heads.num_heads),
          static_cast<int>(heads.num_kv_heads),
          static_cast<int>(heads.head_dim),
          packs,
          1.0f / std::sqrt(static_cast<float>(heads.head_dim))};
}

template <int kDim>
struct HeadDim {
  static constexpr int value = kDim;
};

// Calls f(HeadDim<64>{}), or with 128 or 256: the least that is enough.
template <class F>
void with_head_dim(int64_t head_dim, F&& f) {
  CHECK(head_dim <= kMaxHeadDim, "attention of heads of {}: at most {}", head_dim, kMaxHeadDim);
  if (head_dim <= 64) return f(HeadDim<64>{});
  if (head_dim <= 128) return f(HeadDim<128>{});
  f(HeadDim<256>{});
}

inline void check_attention_shapes(const Tensor& y, const Tensor& lse, const Tensor& qkv,
                                   const Heads& heads) {
  CHECK(heads.num_heads > 0 && heads.num_kv_heads > 0 && heads.head_dim > 0 &&
        heads.num_heads % heads.num_kv_heads == 0);
  CHECK(qkv.shape().rank() == 3 && qkv.cols() == heads.packed() && y.shape().rank() == 3 &&
            y.rows() == qkv.rows() && y.cols() == heads.num_heads * heads.head_dim &&
            lse.size() == qkv.rows() * heads.num_heads,
        "y {}, lse {}, qkv {}", y.shape().to_string(), lse.shape().to_string(),
        qkv.shape().to_string());
  CHECK(y.dtype() == qkv.dtype() && lse.dtype() == DType::fp32);
}

}  // namespace lockstep::kernels::cuda
