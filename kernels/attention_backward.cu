#include "kernels/attention.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tiled_attention.h"
#include "kernels/cuda/workspace.h"
#include "kernels/cudnn_attention.h"

// Gradients, with p made again from lse (Dao, "FlashAttention-2", 2023):
//
//   delta[t] = sum_u p[t,u] * factor[t,u] * (dy[t] . v[u]) = dy[t] . y[t]
//   ds[t,u]  = p[t,u] * (factor[t,u] * (dy[t] . v[u]) - delta[t])
//   dq[t] = sum_u ds[t,u] * k[u],  dk[u] = sum_t ds[t,u] * q[t],  dv[u] = sum_t p * factor * dy[t]
//
// dq and dk are also times the scale of the scores. Blocks own rows of dq, or of dk and dv, so that
// no sum is shared: the products of tiles are made twice instead.
namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = kAttentionThreads;

// delta (B, H, T) = dy . y, a warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(float* __restrict__ delta, HeadRows<const T> dy, HeadRows<const T> y,
                 AttentionSizes sizes) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int head = static_cast<int>(row % sizes.num_heads);
  const int64_t token = row / sizes.num_heads % sizes.tokens;
  const int64_t b = row / sizes.num_heads / sizes.tokens;
  if (b >= sizes.sequences) return;
  const T *left = dy.at(b, head, token), *right = y.at(b, head, token);
  float sum = 0;
  for (int d = lane; d < sizes.head_dim; d += kWarpSize) {
    sum += widened(left[d]) * widened(right[d]);
  }
  sum = warp_sum(sum);
  if (lane == 0) delta[(b * sizes.num_heads + head) * sizes.tokens + token] = sum;
}

template <class T>
struct BackwardRows {
  HeadRows<const T> q, k, v, dy;
  const float* lse;    // (B, H, T)
  const float* delta;  // (B, H, T)
};

// Two tiles owned, two streamed, a product, and numbers of the streamed rows.
template <int kHeadDim>
struct BackwardMemory {
  using Tile = Tiles<kHeadDim>;
  static constexpr int kFloats =
      2 * Tile::kOwned + 2 * Tile::kStreamed + Tile::kWeights + 2 * Tile::kCols;
  static constexpr int kKeptBytes =
      KeptTile<Tile::kRows, Tile::kCols>::kBytes > KeptTile<Tile::kCols, Tile::kRows>::kBytes
          ? KeptTile<Tile::kRows, Tile::kCols>::kBytes
          : KeptTile<Tile::kCols, Tile::kRows>::kBytes;
  static constexpr int kBytes = kFloats * 4 + kKeptBytes;

  float* const first_owned = dynamic_shared<float>();
  float* const second_owned = first_owned + Tile::kOwned;
  float* const first_streamed = second_owned + Tile::kOwned;
  float* const second_streamed = first_streamed + Tile::kStreamed;
  float* const weights = second_streamed + Tile::kStreamed;
  float* const lse = weights + Tile::kWeights;
  float* const delta = lse + Tile::kCols;
  void* const kept = delta + Tile::kCols;
};

// A block owns a tile of queries and streams keys and values.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, Tiles<kHeadDim>::kBlocks)
    query_gradient_kernel(HeadRows<T> dq, BackwardRows<T> in, AttentionSizes sizes,
                          ProbabilityMask mask) {
  using Tile = Tiles<kHeadDim>;
  const BackwardMemory<kHeadDim> memory;
  float *const queries = memory.first_owned, *const upstream = memory.second_owned;
  float *const keys = memory.first_streamed, *const values = memory.second_streamed;
  const BlockRows own(int64_t{gridDim.x} - 1 - blockIdx.x, sizes.num_heads, sizes.sequences);
  const int kv_head = own.head / sizes.group();
  const int64_t first = own.tile * Tile::kRows;
  const int count = static_cast<int>(std::min<int64_t>(Tile::kRows, sizes.tokens - first));
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
  KeptTile<Tile::kRows, Tile::kCols> kept(memory.kept, mask);

  load_tile<Tile::kRows, kHeadDim>(queries, in.q.at(own.b, own.head, first), in.q.token, count,
                                   sizes, sizes.scale);
  load_tile<Tile::kRows, kHeadDim>(upstream, in.dy.at(own.b, own.head, first), in.dy.token, count,
                                   sizes);
  typename Tile::Output output = {};
  float lse[Tile::kRowsEach] = {}, delta[Tile::kRowsEach] = {};
#pragma unroll
  for (int i = 0; i < Tile::kRowsEach; i++) {
    const int row = ty * Tile::kRowsEach + i;
    if (row >= count) continue;
    const int64_t n = (own.b * sizes.num_heads + own.head) * sizes.tokens + first + row;
    lse[i] = in.lse[n], delta[i] = in.delta[n];
  }

  for (int64_t key = 0; key < first + count; key += Tile::kCols) {
    const int64_t left = first + count - key;
    __syncthreads();
    load_tile<Tile::kCols, kHeadDim>(keys, in.k.at(own.b, kv_head, key), in.k.token, left, sizes);
    load_tile<Tile::kCols, kHeadDim>(values, in.v.at(own.b, kv_head, key), in.v.token, left, sizes);
    kept.fill(sizes, own.b, own.head, first, key);
    __syncthreads();
    const int last_key = last_in_tile<kHeadDim>(first - key);  // of the first query
    typename Tile::Product scores, gradient;
    multiply_rows<kHeadDim>(scores, queries, keys, sizes.head_dim);
    multiply_rows<kHeadDim>(gradient, upstream, values, sizes.head_dim);
#pragma unroll
    for (int i = 0; i < Tile::kRowsEach; i++) {
      const int row = ty * Tile::kRowsEach + i;
#pragma unroll
      for (int j = 0; j < Tile::kColsEach; j++) {
        const int col = tx + kSide * j;
        const float p = expf(scores[i][j] - lse[i]);
        const float ds = p * (kept.factor(row, col) * gradient[i][j] - delta[i]);
        gradient[i][j] = col <= last_key + row ? ds : 0.0f;
      }
    }
    store_weights<kHeadDim>(memory.weights, gradient);
    __syncwarp();
    add_weighted<kHeadDim>(output, memory.weights, keys);
  }

#pragma unroll
  for (int i = 0; i < Tile::kRowsEach; i++) {
    const int row = ty * Tile::kRowsEach + i;
    if (row >= count) continue;
    store_row<kHeadDim>(dq.at(own.b, own.head, first + row), output[i], sizes.scale, sizes);
  }
}

// Makes p * factor of scores (keys, queries), and ds of gradient. The tile's first query reads keys
// up to last_key of the tile; `left` queries are there.
template <int kHeadDim, class Kept>
__device__ void weigh_keys(typename Tiles<kHeadDim>::Product& scores,
                           typename Tiles<kHeadDim>::Product& gradient,
                           const BackwardMemory<kHeadDim>& memory, const Kept& kept, int last_key,
                           int64_t left) {
  using Tile = Tiles<kHeadDim>;
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int j = 0; j < Tile::kColsEach; j++) {
    const int col = tx + kSide * j;
    const float lse = memory.lse[col], delta = memory.delta[col];
    const int last_row = col < left ? last_key + col : -1;  // that the query reads
#pragma unroll
    for (int i = 0; i < Tile::kRowsEach; i++) {
      const int row = ty * Tile::kRowsEach + i;
      const float p = row <= last_row ? expf(scores[i][j] - lse) : 0.0f;
      const float factor = kept.factor(col, row);
      const float ds = p * (factor * gradient[i][j] - delta);
      scores[i][j] = p * factor;
      gradient[i][j] = row <= last_row ? ds : 0.0f;
    }
  }
}

// A block owns a tile of keys and values and streams queries, of the heads that read them in order.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, Tiles<kHeadDim>::kBlocks)
    key_value_gradient_kernel(HeadRows<T> dk, HeadRows<T> dv, BackwardRows<T> in,
                              AttentionSizes sizes, ProbabilityMask mask) {
  using Tile = Tiles<kHeadDim>;
  const BackwardMemory<kHeadDim> memory;
  float *const keys = memory.first_owned, *const values = memory.second_owned;
  float *const queries = memory.first_streamed, *const upstream = memory.second_streamed;
  // The first tiles, which most queries read, first, so that blocks end together.
  const BlockRows own(blockIdx.x, sizes.num_kv_heads, sizes.sequences);
  const int64_t first = own.tile * Tile::kRows;
  const int count = static_cast<int>(std::min<int64_t>(Tile::kRows, sizes.tokens - first));
  const int ty = static_cast<int>(threadIdx.x) / kSide;
  KeptTile<Tile::kCols, Tile::kRows> kept(memory.kept, mask);

  load_tile<Tile::kRows, kHeadDim>(keys, in.k.at(own.b, own.head, first), in.k.token, count, sizes);
  load_tile<Tile::kRows, kHeadDim>(values, in.v.at(own.b, own.head, first), in.v.token, count,
                                   sizes);
  typename Tile::Output dkeys = {}, dvalues = {};
  for (int g = 0; g < sizes.group(); g++) {
    const int head = own.head * sizes.group() + g;
    for (int64_t query = first; query < sizes.tokens; query += Tile::kCols) {
      const int64_t left = sizes.tokens - query;
      __syncthreads();
      load_tile<Tile::kCols, kHeadDim>(queries, in.q.at(own.b, head, query), in.q.token, left,
                                       sizes, sizes.scale);
      load_tile<Tile::kCols, kHeadDim>(upstream, in.dy.at(own.b, head, query), in.dy.token, left,
                                       sizes);
      if (threadIdx.x < Tile::kCols) {
        const int64_t n = (own.b * sizes.num_heads + head) * sizes.tokens + query + threadIdx.x;
        memory.lse[threadIdx.x] = threadIdx.x < left ? in.lse[n] : 0.0f;
        memory.delta[threadIdx.x] = threadIdx.x < left ? in.delta[n] : 0.0f;
      }
      kept.fill(sizes, own.b, head, query, first);
      __syncthreads();
      const int last_key = last_in_tile<kHeadDim>(query - first);  // of the first query
      typename Tile::Product scores, gradient;                     // (keys, queries)
      multiply_rows<kHeadDim>(scores, keys, queries, sizes.head_dim);
      multiply_rows<kHeadDim>(gradient, values, upstream, sizes.head_dim);
      weigh_keys<kHeadDim>(scores, gradient, memory, kept, last_key, left);
      store_weights<kHeadDim>(memory.weights, scores);
      __syncwarp();
      add_weighted<kHeadDim>(dvalues, memory.weights, upstream);
      __syncwarp();
      store_weights<kHeadDim>(memory.weights, gradient);
      __syncwarp();
      add_weighted<kHeadDim>(dkeys, memory.weights, queries);  // queries are times the scale
    }
  }

#pragma unroll
  for (int i = 0; i < Tile::kRowsEach; i++) {
    const int row = ty * Tile::kRowsEach + i;
    if (row >= count) continue;
    store_row<kHeadDim>(dk.at(own.b, own.head, first + row), dkeys[i], 1.0f, sizes);
    store_row<kHeadDim>(dv.at(own.b, own.head, first + row), dvalues[i], 1.0f, sizes);
  }
}

void check_gradient_shapes(const Tensor& dqkv, const Tensor& dy, const Tensor& y, const Tensor& lse,
                           const Tensor& qkv, const Heads& heads) {
  check_attention_shapes(y, lse, qkv, heads);
  CHECK(dqkv.shape() == qkv.shape() && dqkv.dtype() == qkv.dtype() && dy.size() == y.size() &&
        dy.dtype() == y.dtype());
}

}  // namespace

void tiled_attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& y,
                              const Tensor& lse, const Tensor& qkv, const Heads& heads,
                              const DropoutMask& mask, Stream& stream) {
  check_gradient_shapes(dqkv, dy, y, lse, qkv, heads);
  const int64_t sequences = qkv.dim(0), tokens = qkv.dim(1), num_heads = heads.num_heads;
  const int64_t value_head = num_heads + heads.num_kv_heads, rows = sequences * num_heads * tokens;
  if (rows == 0) return;
  const int64_t delta_bytes = attention_workspace_bytes(sequences, num_heads, tokens);
  auto* delta = static_cast<float*>(stream.workspace(delta_bytes));

  with_float_type(qkv.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* packed = qkv.as<T>();
    T* gradient = dqkv.as<T>();
    const AttentionSizes sizes = attention_sizes(
        sequences, tokens, heads, in_packs<T>(heads.head_dim, packed, gradient, dy.as<T>()));
    const BackwardRows<T> in{packed_rows(packed, tokens, heads, 0),
                             packed_rows(packed, tokens, heads, num_heads),
                             packed_rows(packed, tokens, heads, value_head),
                             output_rows<const T>(dy.as<T>(), tokens, heads),
                             lse.as<float>(),
                             delta};
    launch({"attention_delta", bytes_of(dy, y) + static_cast<double>(delta_bytes)}, delta_kernel<T>,
           dim3(blocks_for(rows, kThreads / kWarpSize)), dim3(kThreads), 0, stream, delta, in.dy,
           output_rows<const T>(y.as<T>(), tokens, heads), sizes);
    with_head_dim(heads.head_dim, [&](auto head_dim) {
      constexpr int kHeadDim = decltype(head_dim)::value;
      constexpr int kBytes = BackwardMemory<kHeadDim>::kBytes;
      const int64_t tiles = blocks_for(tokens, Tiles<kHeadDim>::kRows) * sequences;
      // Each reads all of qkv and dy, and writes its part of dqkv.
      const double read = bytes_of(qkv, dy, lse) + static_cast<double>(delta_bytes);
      const double product = product_flops(sizes, 0);
      const double query_share = static_cast<double>(num_heads) /
                                 static_cast<double>(heads.num_heads + 2 * heads.num_kv_heads);
      launch({"attention_backward_queries", read + query_share * bytes_of(dqkv), 3 * product},
             query_gradient_kernel<T, kHeadDim>, dim3(blocks_for(tiles * num_heads, 1)),
             dim3(kThreads), kBytes, stream, packed_rows(gradient, tokens, heads, 0), in, sizes,
             ProbabilityMask(mask));
      launch({"attention_backward_keys_values", read + (1 - query_share) * bytes_of(dqkv),
              4 * product},
             key_value_gradient_kernel<T, kHeadDim>,
             dim3(blocks_for(tiles * heads.num_kv_heads, 1)), dim3(kThreads), kBytes, stream,
             packed_rows(gradient, tokens, heads, num_heads),
             packed_rows(gradient, tokens, heads, value_head), in, sizes, ProbabilityMask(mask));
    });
  });
}

void attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& y, const Tensor& lse,
                        const Tensor& qkv, const Heads& heads, const DropoutMask& mask,
                        Stream& stream) {
  check_gradient_shapes(dqkv, dy, y, lse, qkv, heads);
  if (cudnn_attention_backward(dqkv, dy, y, lse, qkv, heads, mask, stream)) return;
  tiled_attention_backward(dqkv, dy, y, lse, qkv, heads, mask, stream);
}

}  // namespace lockstep::kernels::cuda
