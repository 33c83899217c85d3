#include "kernels/attention.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tiled_attention.h"
#include "kernels/cudnn_attention.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = kAttentionThreads;

// A reduction over the half warp that has a row, in a fixed order, for all its lanes.
template <class F>
__device__ float over_row(float x, F join) {
#pragma unroll
  for (int distance = kSide / 2; distance > 0; distance /= 2) {
    x = join(x, __shfl_xor_sync(kWholeWarp, x, distance));
  }
  return x;
}

template <int kHeadDim>
struct ForwardMemory {
  using Tile = Tiles<kHeadDim>;
  using Kept = KeptTile<Tile::kRows, Tile::kCols>;
  static constexpr int kFloats = Tile::kOwned + 2 * Tile::kStreamed + Tile::kWeights;
  static constexpr int kBytes = kFloats * 4 + Kept::kBytes;
};

// Of the thread's rows, over the keys so far.
template <int kHeadDim>
struct RunningSoftmax {
  using Tile = Tiles<kHeadDim>;
  typename Tile::Output output = {};  // of exp(scores - largest), not yet divided by their sum
  float largest[Tile::kRowsEach];
  float sum[Tile::kRowsEach] = {};  // of the thread's columns

  __device__ RunningSoftmax() {
#pragma unroll
    for (int i = 0; i < Tile::kRowsEach; i++) largest[i] = -INFINITY;
  }

  // Makes weights of the scores of a tile, of which row 0 reads keys up to last_key, and brings
  // output and sum to the new maximum.
  template <class Kept>
  __device__ void add(typename Tile::Product& scores, int last_key, const Kept& kept) {
    const int tx = static_cast<int>(threadIdx.x) % kSide;
    const int ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
    for (int i = 0; i < Tile::kRowsEach; i++) {
      const int row = ty * Tile::kRowsEach + i;
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < Tile::kColsEach; j++) {
        if (tx + kSide * j > last_key + row) scores[i][j] = -INFINITY;
        most = fmaxf(most, scores[i][j]);
      }
      most = fmaxf(largest[i], over_row(most, [](float a, float b) { return fmaxf(a, b); }));
      const float correction = expf(largest[i] - most);
      largest[i] = most;
      sum[i] *= correction;
#pragma unroll
      for (int d = 0; d < Tile::kDimsEach; d++) output[i][d] *= correction;
#pragma unroll
      for (int j = 0; j < Tile::kColsEach; j++) {
        const float p = expf(scores[i][j] - most);
        sum[i] += p;
        scores[i][j] = p * kept.factor(row, tx + kSide * j);
      }
    }
  }
};

// A block owns a tile of queries, at tokens position + [first, first + count), and streams all
// keys and values up to its last query's own.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, Tiles<kHeadDim>::kBlocks)
    forward_kernel(HeadRows<T> y, float* __restrict__ lse, HeadRows<const T> q, HeadRows<const T> k,
                   HeadRows<const T> v, AttentionSizes sizes, int64_t position,
                   ProbabilityMask mask) {
  using Tile = Tiles<kHeadDim>;
  float* const queries = dynamic_shared<float>();
  float* const keys = queries + Tile::kOwned;
  float* const values = keys + Tile::kStreamed;
  float* const weights = values + Tile::kStreamed;
  // The last tiles, which have most keys, first, so that blocks end together.
  const BlockRows own(int64_t{gridDim.x} - 1 - blockIdx.x, sizes.num_heads, sizes.sequences);
  const int kv_head = own.head / sizes.group();
  const int64_t first = own.tile * Tile::kRows;
  const int count = static_cast<int>(std::min<int64_t>(Tile::kRows, sizes.tokens - first));
  const int64_t end = position + first + count;
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
  typename ForwardMemory<kHeadDim>::Kept kept(weights + Tile::kWeights, mask);

  load_tile<Tile::kRows, kHeadDim>(queries, q.at(own.b, own.head, first), q.token, count, sizes,
                                   sizes.scale);
  RunningSoftmax<kHeadDim> state;
  for (int64_t key = 0; key < end; key += Tile::kCols) {
    __syncthreads();
    load_tile<Tile::kCols, kHeadDim>(keys, k.at(own.b, kv_head, key), k.token, end - key, sizes);
    load_tile<Tile::kCols, kHeadDim>(values, v.at(own.b, kv_head, key), v.token, end - key, sizes);
    kept.fill(sizes, own.b, own.head, first, key);
    __syncthreads();
    const int last_key = last_in_tile<kHeadDim>(position + first - key);  // of the first query
    typename Tile::Product scores;
    multiply_rows<kHeadDim>(scores, queries, keys, sizes.head_dim);
    state.add(scores, last_key, kept);
    store_weights<kHeadDim>(weights, scores);
    __syncwarp();
    add_weighted<kHeadDim>(state.output, weights, values);
  }

#pragma unroll
  for (int i = 0; i < Tile::kRowsEach; i++) {
    const float total = over_row(state.sum[i], [](float a, float b) { return a + b; });
    const int row = ty * Tile::kRowsEach + i;
    if (row >= count) continue;
    store_row<kHeadDim>(y.at(own.b, own.head, first + row), state.output[i], 1.0f / total, sizes);
    if (lse != nullptr && tx == 0) {
      lse[(own.b * sizes.num_heads + own.head) * sizes.tokens + first + row] =
          state.largest[i] + logf(total);
    }
  }
}

template <class T>
void forward(const HeadRows<T>& y, float* lse, const HeadRows<const T>& q,
             const HeadRows<const T>& k, const HeadRows<const T>& v, const AttentionSizes& sizes,
             int64_t position, const DropoutMask& mask, Stream& stream) {
  with_head_dim(sizes.head_dim, [&](auto head_dim) {
    constexpr int kHeadDim = decltype(head_dim)::value;
    const int64_t tiles = pieces(sizes.tokens, Tiles<kHeadDim>::kRows);
    // Queries and outputs, and the keys and values up to the last query's.
    const auto rows = static_cast<double>(sizes.sequences * sizes.head_dim) *
                      (2.0 * static_cast<double>(sizes.tokens) * sizes.num_heads +
                       2.0 * static_cast<double>(position + sizes.tokens) * sizes.num_kv_heads);
    const double lse_bytes =
        lse == nullptr ? 0
                       : static_cast<double>(sizes.sequences * sizes.num_heads * sizes.tokens * 4);
    launch({"attention_forward", rows * sizeof(T) + lse_bytes, 2 * product_flops(sizes, position)},
           forward_kernel<T, kHeadDim>,
           dim3(blocks_for(tiles * sizes.sequences * sizes.num_heads, 1)), dim3(kThreads),
           ForwardMemory<kHeadDim>::kBytes, stream, y, lse, q, k, v, sizes, position,
           ProbabilityMask(mask));
  });
}

// Generation. Up to kFewQueries new tokens, reading the caches is what costs, and there are too few
// rows for blocks by tiles: blocks go by kChunk keys of one query (as in Dao et al.,
// "Flash-Decoding", 2023), each leaves a maximum, a sum and sums of values, and another kernel
// joins those, in order.
constexpr int64_t kFewQueries = 8;
constexpr int kChunk = 128;
constexpr int kLanes = 8;  // of a key

// A thread copies one pack of a new key or value to its place.
template <class T>
__global__ void __launch_bounds__(kThreads)
    extend_kernel(HeadRows<T> key_cache, HeadRows<T> value_cache, HeadRows<const T> k,
                  HeadRows<const T> v, AttentionSizes sizes, int64_t position) {
  const int packs = (sizes.head_dim + Pack<T>::kSize - 1) / Pack<T>::kSize;
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int d = static_cast<int>(n % packs) * Pack<T>::kSize;
  const int head = static_cast<int>(n / packs % sizes.num_kv_heads);
  const int64_t row = n / packs / sizes.num_kv_heads;  // the keys of all tokens, then the values
  if (row >= 2 * sizes.tokens) return;
  const bool is_value = row >= sizes.tokens;
  const int64_t token = is_value ? row - sizes.tokens : row;
  const Pack<T> pack = load_pack((is_value ? v : k).at(0, head, token), d, sizes);
  T* to = (is_value ? value_cache : key_cache).at(0, head, position + token) + d;
  store_pack(to, pack, sizes.head_dim - d, sizes.in_packs);
}

// scores[u] = query . k[u] for `count` keys: kLanes threads a key.
template <class T>
__device__ void chunk_scores(float* scores, const float* query, const T* keys, int64_t stride,
                             int count, const AttentionSizes& sizes) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int first = 0; first < count; first += kThreads / kLanes) {
    const int key = first + static_cast<int>(threadIdx.x) / kLanes;
    float sum = 0;
    if (key < count) {
#pragma unroll 2
      for (int d = lane * Pack<T>::kSize; d < sizes.head_dim; d += kLanes * Pack<T>::kSize) {
        const Pack<T> pack = load_pack(keys + key * stride, d, sizes);
#pragma unroll
        for (int i = 0; i < Pack<T>::kSize; i++) sum += query[d + i] * widened(pack.value[i]);
      }
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kWholeWarp, sum, distance);
    }
    if (key < count && lane == 0) scores[key] = sum;
  }
}

// out[d] = sum_u weights[u] * v[u][d] over `count` keys. A thread has a pack of components and
// every n-th key, n threads a pack; `partial` holds kThreads packs.
template <class T>
__device__ void chunk_values(float* out, const float* weights, const T* values, int64_t stride,
                             int count, const AttentionSizes& sizes, float* partial) {
  const int packs = (sizes.head_dim + Pack<T>::kSize - 1) / Pack<T>::kSize;
  const int slices = kThreads / packs, width = packs * Pack<T>::kSize;
  const int thread = static_cast<int>(threadIdx.x), slice = thread / packs;
  const int d = thread % packs * Pack<T>::kSize;
  if (slice < slices) {
    float sum[Pack<T>::kSize] = {};
#pragma unroll 2
    for (int key = slice; key < count; key += slices) {
      const Pack<T> pack = load_pack(values + key * stride, d, sizes);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) sum[i] += weights[key] * widened(pack.value[i]);
    }
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) partial[slice * width + d + i] = sum[i];
  }
  __syncthreads();
  if (thread < sizes.head_dim) {
    float sum = 0;
#pragma unroll 2
    for (int s = 0; s < slices; s++) sum += partial[s * width + thread];
    out[thread] = sum;
  }
}

// What a block leaves of its chunk: the maximum of the scores, then of the exponentials of their
// distances to it the sum, and the sums with the values.
constexpr int kPartialHeader = 2;

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    chunk_kernel(float* __restrict__ partials, HeadRows<const T> q, HeadRows<const T> k,
                 HeadRows<const T> v, AttentionSizes sizes, int64_t position, int chunks) {
  __shared__ float query[kMaxHeadDim], weights[kChunk], partial[kThreads * Pack<T>::kSize];
  __shared__ float maximum_scratch[kThreads / kWarpSize], sum_scratch[kThreads / kWarpSize];
  static_assert(kChunk <= kThreads && kMaxHeadDim <= kThreads);
  const int64_t first = int64_t{blockIdx.x} % chunks * kChunk;
  const int head = static_cast<int>(blockIdx.x / chunks % sizes.num_heads);
  const int64_t token = blockIdx.x / chunks / sizes.num_heads;
  const int kv_head = head / sizes.group();
  const int count = static_cast<int>(std::min<int64_t>(kChunk, position + token + 1 - first));
  if (count <= 0) return;  // for tokens after this one only
  float* out = partials + blockIdx.x * int64_t{kPartialHeader + sizes.head_dim};

  const int thread = static_cast<int>(threadIdx.x);
  query[thread] =
      thread < sizes.head_dim ? sizes.scale * widened(q.at(0, head, token)[thread]) : 0.0f;
  __syncthreads();
  chunk_scores(weights, query, k.at(0, kv_head, first), k.token, count, sizes);
  __syncthreads();
  const float score = thread < count ? weights[thread] : -INFINITY;
  const float maximum = block_max<kThreads>(score, maximum_scratch);
  const float weight = thread < count ? expf(score - maximum) : 0.0f;
  if (thread < count) weights[thread] = weight;
  const float sum = block_sum<kThreads>(weight, sum_scratch);
  chunk_values(out + kPartialHeader, weights, v.at(0, kv_head, first), v.token, count, sizes,
               partial);
  if (thread == 0) out[0] = maximum, out[1] = sum;
}

// One block a query: y = the sum of its chunks, each by its distance to the largest maximum.
template <class T>
__global__ void __launch_bounds__(kThreads)
    join_kernel(HeadRows<T> y, const float* __restrict__ partials, AttentionSizes sizes,
                int64_t position, int chunks) {
  const int head = static_cast<int>(blockIdx.x % sizes.num_heads);
  const int64_t token = blockIdx.x / sizes.num_heads;
  const int64_t size = kPartialHeader + sizes.head_dim;
  const int count = static_cast<int>((position + token) / kChunk) + 1;
  const float* first = partials + blockIdx.x * chunks * size;
  float maximum = -INFINITY;
  for (int c = 0; c < count; c++) maximum = fmaxf(maximum, first[c * size]);
  const int d = static_cast<int>(threadIdx.x);
  if (d >= sizes.head_dim) return;
  float sum = 0, output = 0;
  for (int c = 0; c < count; c++) {
    const float factor = expf(first[c * size] - maximum);
    sum += factor * first[c * size + 1];
    output += factor * first[c * size + kPartialHeader + d];
  }
  y.at(0, head, token)[d] = rounded<T>(output / sum);
}

template <class T>
void attend_few(const HeadRows<T>& y, const HeadRows<const T>& q, const HeadRows<const T>& k,
                const HeadRows<const T>& v, const AttentionSizes& sizes, int64_t position,
                Stream& stream) {
  const int64_t queries = sizes.tokens * sizes.num_heads;
  const auto chunks = static_cast<int>(blocks_for(position + sizes.tokens, kChunk));
  auto* partials = static_cast<float*>(
      stream.workspace(queries * chunks * (kPartialHeader + sizes.head_dim) * 4));
  const auto partial_bytes =
      static_cast<double>(queries * chunks * (kPartialHeader + sizes.head_dim) * 4);
  const auto cache_bytes = 2.0 * static_cast<double>((position + sizes.tokens) * sizes.head_dim) *
                           sizes.num_kv_heads * sizeof(T);
  const auto query_bytes = static_cast<double>(queries * sizes.head_dim) * sizeof(T);
  launch({"attention_with_cache", cache_bytes + query_bytes + partial_bytes,
          2 * product_flops(sizes, position)},
         chunk_kernel<T>, dim3(blocks_for(queries * chunks, 1)), dim3(kThreads), 0, stream,
         partials, q, k, v, sizes, position, chunks);
  launch({"attention_join", partial_bytes + query_bytes}, join_kernel<T>,
         dim3(blocks_for(queries, 1)), dim3(kThreads), 0, stream, y, partials, sizes, position,
         chunks);
}

// The new tokens of one sequence, whose rows y and qkv are, and its one page.
template <class T>
void attend_sequence(const Tensor& y, const Tensor& qkv, const Heads& heads,
                     const CachedSequence& sequence, const PagePlace& place, Stream& stream) {
  const int64_t tokens = sequence.tokens, position = sequence.position, head_dim = heads.head_dim;
  const int64_t head_size = place.page_size * head_dim, all_heads = heads.num_kv_heads * head_size;
  T* key_cache = static_cast<T*>(sequence.pages.front()) + 2 * place.layer * all_heads;
  T* value_cache = key_cache + all_heads;
  const T* rows = qkv.as<T>();
  const AttentionSizes sizes = attention_sizes(
      1, tokens, heads, in_packs<T>(head_dim, rows, y.as<T>(), key_cache, value_cache));
  const auto q = packed_rows(rows, tokens, heads, 0);
  const auto new_keys = packed_rows(rows, tokens, heads, heads.num_heads);
  const auto new_values = packed_rows(rows, tokens, heads, heads.num_heads + heads.num_kv_heads);
  const HeadRows<T> keys{key_cache, 0, head_size, head_dim};
  const HeadRows<T> values{value_cache, 0, head_size, head_dim};
  const HeadRows<T> outputs = output_rows(y.as<T>(), tokens, heads);
  const int64_t packs = pieces(head_dim, Pack<T>::kSize);
  const auto new_bytes =
      static_cast<double>(4 * tokens * heads.num_kv_heads * head_dim) * sizeof(T);
  launch({"attention_extend_cache", new_bytes}, extend_kernel<T>,
         dim3(blocks_for(2 * tokens * heads.num_kv_heads * packs, kThreads)), dim3(kThreads), 0,
         stream, keys, values, new_keys, new_values, sizes, position);

  const HeadRows<const T> all_keys{keys.data, 0, keys.head, keys.token};
  const HeadRows<const T> all_values{values.data, 0, values.head, values.token};
  if (tokens <= kFewQueries) {
    attend_few<T>(outputs, q, all_keys, all_values, sizes, position, stream);
  } else {
    forward<T>(outputs, nullptr, q, all_keys, all_values, sizes, position, DropoutMask(), stream);
  }
}

}  // namespace

void tiled_attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv,
                             const Heads& heads, const DropoutMask& mask, Stream& stream) {
  check_attention_shapes(y, lse, qkv, heads);
  const int64_t tokens = qkv.dim(1);
  with_float_type(qkv.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* rows = qkv.as<T>();
    const AttentionSizes sizes =
        attention_sizes(qkv.dim(0), tokens, heads, in_packs<T>(heads.head_dim, rows, y.as<T>()));
    forward<T>(output_rows(y.as<T>(), tokens, heads), lse.as<float>(),
               packed_rows(rows, tokens, heads, 0),
               packed_rows(rows, tokens, heads, heads.num_heads),
               packed_rows(rows, tokens, heads, heads.num_heads + heads.num_kv_heads), sizes, 0,
               mask, stream);
  });
}

void attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv, const Heads& heads,
                       const DropoutMask& mask, Stream& stream) {
  check_attention_shapes(y, lse, qkv, heads);
  if (cudnn_attention_forward(y, lse, qkv, heads, mask, stream)) return;
  tiled_attention_forward(y, lse, qkv, heads, mask, stream);
}

void attention_with_cache(const Tensor& y, const Tensor& qkv, const Heads& heads,
                          std::span<const CachedSequence> sequences, const PagePlace& place, Rows,
                          Stream& stream) {
  const int64_t width = heads.num_heads * heads.head_dim;
  CHECK(qkv.cols() == heads.packed() && y.size() == qkv.rows() * width &&
            y.dtype() == qkv.dtype() && heads.head_dim <= kMaxHeadDim,
        "y {}, qkv {}", y.shape().to_string(), qkv.shape().to_string());
  const Tensor outputs = y.reshape({qkv.rows(), width});
  const Tensor inputs = qkv.reshape({qkv.rows(), heads.packed()});
  int64_t row = 0;
  for (const CachedSequence& s : sequences) {
    CHECK(s.pages.size() == 1 && s.position >= 0 && s.tokens >= 0 &&
              s.position + s.tokens <= place.page_size && row + s.tokens <= qkv.rows(),
          "{} tokens from position {} on in {} pages of {}", s.tokens, s.position, s.pages.size(),
          place.page_size);
    const Tensor y_rows = outputs.slice(row, row + s.tokens);
    const Tensor qkv_rows = inputs.slice(row, row + s.tokens);
    row += s.tokens;
    if (s.tokens == 0) continue;
    with_float_type(qkv.dtype(), [&](auto tag) {
      attend_sequence<typename decltype(tag)::type>(y_rows, qkv_rows, heads, s, place, stream);
    });
  }
  CHECK(row == qkv.rows(), "{} new tokens, qkv {}", row, qkv.shape().to_string());
}

}  // namespace lockstep::kernels::cuda
