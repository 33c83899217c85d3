#include <algorithm>
#include <utility>

#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/embedding.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A thread writes one pack. The loader checks tokens on the host; here one outside the table
// becomes NaN, so that it cannot pass unseen.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* __restrict__ y, const int32_t* __restrict__ tokens,
                   const T* __restrict__ token_table, const T* __restrict__ position_table,
                   int64_t packs, int64_t vocab, int64_t length, int64_t channels, bool whole) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= packs) return;
  const int64_t packs_of_row = pieces(channels, Pack<T>::kSize);
  const int64_t place = n / packs_of_row;
  const int64_t channel = (n - place * packs_of_row) * Pack<T>::kSize, count = channels - channel;
  const int64_t token = tokens[place];
  Pack<T> out;
  if (token < 0 || token >= vocab) {
    for (T& value : out.value) value = rounded<T>(nanf(""));
  } else {
    out = load_pack(token_table + token * channels + channel, count, whole);
    if (position_table != nullptr) {
      const T* position = position_table + place % length * channels + channel;
      const Pack<T> added = load_pack(position, count, whole);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) {
        out.value[i] = rounded<T>(widened(out.value[i]) + widened(added.value[i]));
      }
    }
  }
  store_pack(y + place * channels + channel, out, count, whole);
}

// Backward sorts (token, place), each pair one number, and then one warp adds up each token's rows.
// The numbers differ, so that a number's rank is its place in order: runs of kRun are sorted by
// counting who is smaller, and pairs of runs merged by searching the other run.
constexpr int kRun = 1024;

__global__ void __launch_bounds__(kRun)
    sort_runs_kernel(uint64_t* __restrict__ sorted, const int32_t* __restrict__ tokens,
                     int64_t count) {
  __shared__ __align__(16) uint64_t run[kRun];
  const int64_t begin = int64_t{blockIdx.x} * kRun, place = begin + threadIdx.x;
  const uint64_t own = place < count ? uint64_t{static_cast<uint32_t>(tokens[place])} << 32 |
                                           static_cast<uint64_t>(place)
                                     : ~uint64_t{0};
  run[threadIdx.x] = own;
  __syncthreads();
  if (place >= count) return;
  int rank = 0;
#pragma unroll 8
  for (int i = 0; i < kRun; i++) rank += run[i] < own ? 1 : 0;
  sorted[begin + rank] = own;
}

__global__ void __launch_bounds__(kThreads)
    merge_runs_kernel(uint64_t* __restrict__ merged, const uint64_t* __restrict__ sorted,
                      int64_t count, int64_t run) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= count) return;
  const uint64_t own = sorted[n];
  const int64_t begin = n / run * run;
  const int64_t other = n / run % 2 == 0 ? begin + run : begin - run;
  int64_t low = other < count ? other : count, high = other + run < count ? other + run : count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < own) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int64_t smaller = low - (other < count ? other : count);
  merged[(begin < other ? begin : other) + (n - begin) + smaller] = own;
}

// Sorted pairs, in one of the two halves of scratch (2 * count).
const uint64_t* sort_tokens(uint64_t* scratch, const int32_t* tokens, int64_t count,
                            Stream& stream) {
  uint64_t *sorted = scratch, *other = scratch + count;
  const auto pairs_bytes = static_cast<double>(count) * sizeof(uint64_t);
  launch({"sort_token_runs", static_cast<double>(count) * sizeof(int32_t) + pairs_bytes},
         sort_runs_kernel, dim3(blocks_for(count, kRun)), dim3(kRun), 0, stream, sorted, tokens,
         count);
  for (int64_t run = kRun; run < count; run *= 2) {
    launch({"merge_token_runs", 2 * pairs_bytes}, merge_runs_kernel,
           dim3(blocks_for(count, kThreads)), dim3(kThreads), 0, stream, other, sorted, count, run);
    std::swap(sorted, other);
  }
  return sorted;
}

constexpr int kAhead = 8;  // rows that a thread loads before it adds them

// fp32 sums of a pack of channels, of a row of a table of gradients.
template <class T>
class RowSums {
 public:
  __device__ RowSums(float* row, int64_t count, bool whole) : row_(row), count_(count) {
    whole_ = whole;
#pragma unroll
    for (int q = 0; q < kQuads; q++) quads_[q] = load_pack(row_ + 4 * q, count_ - 4 * q, whole_);
  }
  __device__ void add(const Pack<T>& pack) {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) quads_[i / 4].value[i % 4] += widened(pack.value[i]);
  }
  __device__ void store() const {
#pragma unroll
    for (int q = 0; q < kQuads; q++) store_pack(row_ + 4 * q, quads_[q], count_ - 4 * q, whole_);
  }

 private:
  static constexpr int kQuads = Pack<T>::kSize / 4;
  float* row_;
  int64_t count_;
  bool whole_;
  Pack<float> quads_[kQuads];
};

// A warp that finds the first of a token's pairs adds up that token's rows, a pack of channels a
// lane; other warps have nothing to do.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    add_tokens_kernel(float* dtable, const T* __restrict__ dy, const uint64_t* __restrict__ sorted,
                      int64_t count, int64_t vocab, int64_t channels, bool whole) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t first = int64_t{blockIdx.x} * (kThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (first >= count) return;
  const uint64_t token = sorted[first] >> 32;
  if (token >= static_cast<uint64_t>(vocab)) return;
  if (first > 0 && sorted[first - 1] >> 32 == token) return;

  const int64_t channel = (int64_t{blockIdx.y} * kWarpSize + lane) * Pack<T>::kSize;
  const int64_t rest = channels - channel;  // not positive for a lane behind the row
  const bool active = rest > 0;
  RowSums<T> sums(dtable + (active ? static_cast<int64_t>(token) * channels + channel : 0), rest,
                  whole && active);
  for (int64_t begin = first;; begin += kWarpSize) {
    const int64_t n = begin + lane;
    const uint64_t pair = n < count ? sorted[n] : ~uint64_t{0};
    const auto place = static_cast<uint32_t>(pair);
    const int rows = __popc(__ballot_sync(kWholeWarp, n < count && pair >> 32 == token));
    for (int j = 0; j < rows; j += kAhead) {
      Pack<T> ahead[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; k++) {
        const int64_t row = __shfl_sync(kWholeWarp, place, j + k);
        if (j + k < rows && active)
          ahead[k] = load_pack(dy + row * channels + channel, rest, whole);
      }
#pragma unroll
      for (int k = 0; k < kAhead; k++) {
        if (j + k < rows && active) sums.add(ahead[k]);
      }
    }
    if (rows < kWarpSize) break;
  }
  if (active) sums.store();
}

// A thread adds up a pack of channels of one position over the sequences.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_positions_kernel(float* dtable, const T* __restrict__ dy, int64_t packs, int64_t batch,
                         int64_t length, int64_t channels, bool whole) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= packs) return;
  const int64_t packs_of_row = pieces(channels, Pack<T>::kSize);
  const int64_t position = n / packs_of_row;
  const int64_t channel = (n - position * packs_of_row) * Pack<T>::kSize;
  const int64_t at = position * channels + channel, rest = channels - channel;
  RowSums<T> sums(dtable + at, rest, whole);
#pragma unroll 4
  for (int64_t b = 0; b < batch; b++) {
    sums.add(load_pack(dy + b * length * channels + at, rest, whole));
  }
  sums.store();
}

}  // namespace

void embedding_forward(const Tensor& y, const Tensor& tokens, const Tensor& token_table,
                       const Tensor& position_table, int64_t first_position, Stream& stream) {
  const int64_t length = tokens.cols(), channels = y.cols();
  CHECK(y.rows() == tokens.size() && token_table.cols() == channels);
  if (!position_table.empty()) {
    CHECK(position_table.cols() == channels);
    CHECK(first_position >= 0 && first_position + length <= position_table.rows());
  }
  with_float_type(y.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* positions =
        position_table.empty() ? nullptr : position_table.as<T>() + first_position * channels;
    const int64_t packs = tokens.size() * pieces(channels, Pack<T>::kSize);
    // Rows of the tables that several tokens share come from memory once.
    const double position_bytes =
        positions == nullptr ? 0 : static_cast<double>(length * channels) * sizeof(T);
    launch({"embedding_forward",
            bytes_of(y, tokens) + position_bytes + std::min(bytes_of(token_table), bytes_of(y))},
           forward_kernel<T>, dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream,
           y.as<T>(), tokens.as<int32_t>(), token_table.as<T>(), positions, packs,
           token_table.rows(), length, channels,
           in_packs<T>(channels, y.data(), token_table.data(), positions));
  });
}

void embedding_backward(const Tensor& dtoken_table, const Tensor& dposition_table, const Tensor& dy,
                        const Tensor& tokens, Stream& stream) {
  const int64_t batch_tokens = tokens.size(), length = tokens.cols(), channels = dy.cols();
  CHECK(dy.rows() == batch_tokens && dtoken_table.cols() == channels);
  CHECK(batch_tokens < int64_t{1} << 32);
  if (!dposition_table.empty()) {
    CHECK(dposition_table.cols() == channels && length <= dposition_table.rows());
  }
  if (batch_tokens == 0) return;
  auto* scratch = static_cast<uint64_t*>(stream.workspace(embedding_workspace_bytes(batch_tokens)));
  const uint64_t* sorted = sort_tokens(scratch, tokens.as<int32_t>(), batch_tokens, stream);
  with_float_type(dy.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t packs = pieces(channels, Pack<T>::kSize);
    // At most: a token that comes again has its row read and written once.
    const int64_t touched = std::min(batch_tokens, dtoken_table.rows());
    const auto sums_bytes = static_cast<double>(2 * touched * channels) * sizeof(float);
    launch({"embedding_backward_tokens", bytes_of(dy, tokens) + sums_bytes}, add_tokens_kernel<T>,
           dim3(blocks_for(batch_tokens, kThreads / kWarpSize), blocks_for(packs, kWarpSize)),
           dim3(kThreads), 0, stream, dtoken_table.as<float>(), dy.as<T>(), sorted, batch_tokens,
           dtoken_table.rows(), channels, in_packs<T>(channels, dtoken_table.data(), dy.data()));
    if (dposition_table.empty()) return;
    const auto position_bytes = static_cast<double>(2 * length * channels) * sizeof(float);
    launch({"embedding_backward_positions", bytes_of(dy) + position_bytes}, add_positions_kernel<T>,
           dim3(blocks_for(length * packs, kThreads)), dim3(kThreads), 0, stream,
           dposition_table.as<float>(), dy.as<T>(), length * packs, batch_tokens / length, length,
           channels, in_packs<T>(channels, dposition_table.data(), dy.data()));
  });
}

}  // namespace lockstep::kernels::cuda
