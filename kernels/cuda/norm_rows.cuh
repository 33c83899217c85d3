#pragma once
#include <algorithm>

#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/workspace.h"

// What the normalisations of rows share. A team of threads has a row: a warp where that suffices,
// else a block. Each thread keeps its packs of the row in registers, so that memory is read once;
// rows too long for that are read again. Which of the three depends on the number of channels
// and their type alone, and so does the order of sums.
namespace lockstep::kernels::cuda {

inline constexpr int kRowThreads = 128;  // of a block

// A thread's share of a row: packs t, t + kThreads, t + 2 kThreads... It keeps at most kHeldPacks
// of them; 0: none.
template <class T, int kWarps, int kHeldPacks>
struct RowShare {
  static constexpr int kWarpsOfTeam = kWarps;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kTeams = kRowThreads / kThreads;  // in a block
  static constexpr bool kHeld = kHeldPacks > 0;
  static constexpr int kPacks = kHeld ? kHeldPacks : 1 << 30;
  static constexpr int kUnroll = kHeld ? kHeldPacks : 1;

  int channels;
  bool whole;

  __device__ static int team() { return static_cast<int>(threadIdx.x) / kThreads; }
  // The first channel of the thread's k-th pack, and how many channels it has.
  __device__ int channel(int k) const {
    return (static_cast<int>(threadIdx.x) % kThreads + k * kThreads) * Pack<T>::kSize;
  }
  __device__ int count(int k) const { return channels - channel(k); }
  __device__ Pack<T> load(const T* row, int k) const {
    return load_pack(row + channel(k), count(k), whole);
  }
  __device__ void store(T* row, int k, const Pack<T>& pack) const {
    store_pack(row + channel(k), pack, count(k), whole);
  }
};

// The thread's packs of one row, in registers where they fit.
template <class T, class Share>
class HeldRow {
 public:
  __device__ HeldRow(const Share& share, const T* row) : share_(share), row_(row) {
    if constexpr (Share::kHeld) {
#pragma unroll
      for (int k = 0; k < Share::kPacks; k++) {
        if (share.count(k) <= 0) break;
        packs_[k] = share.load(row, k);
      }
    }
  }
  // The row is the sum of two, and is stored.
  __device__ HeldRow(const Share& share, T* sum, const T* row, const T* added)
      : share_(share), row_(sum) {
#pragma unroll Share::kUnroll
    for (int k = 0; k < Share::kPacks; k++) {
      if (share.count(k) <= 0) break;
      Pack<T> pack = share.load(row, k);
      const Pack<T> other = share.load(added, k);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) {
        pack.value[i] = rounded<T>(widened(pack.value[i]) + widened(other.value[i]));
      }
      share.store(sum, k, pack);
      if constexpr (Share::kHeld) packs_[k] = pack;
    }
  }
  __device__ Pack<T> pack(int k) const {
    if constexpr (Share::kHeld) {
      return packs_[k];
    } else {
      return share_.load(row_, k);
    }
  }

 private:
  const Share& share_;
  const T* row_;
  Pack<T> packs_[Share::kHeld ? Share::kPacks : 1];
};

// Replaces each of x by its sum over the team. `scratch` is shared memory that the call before and
// the call after this one do not use: a block's threads may be a call apart.
template <int kWarps, int kCount>
__device__ void team_sum(float (&x)[kCount], float (*scratch)[kWarps]) {
#pragma unroll
  for (int j = 0; j < kCount; j++) x[j] = warp_sum(x[j]);
  if constexpr (kWarps > 1) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % kWarpSize == 0) {
      for (int j = 0; j < kCount; j++) scratch[j][thread / kWarpSize] = x[j];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      x[j] = 0;
      for (int warp = 0; warp < kWarps; warp++) x[j] += scratch[j][warp];
    }
  }
}

// Sums over rows, for each channel: kCount of them at a time. A block adds up its rows, each thread
// the channels of its share, and writes a row of kCount * channels partial sums.
template <class T, class Share, int kCount>
class ColumnSums {
 public:
  __device__ ColumnSums(const Share& share, float* partial) : share_(share), partial_(partial) {
    if constexpr (!Share::kHeld) {
      for (int k = 0; share.count(k) > 0; k++) {
        for (int i = 0; i < Pack<T>::kSize && i < share.count(k); i++) {
          for (int j = 0; j < kCount; j++) at(j, k, i) = 0;
        }
      }
    }
  }
  // Adds to the sums of the i-th channel of the k-th pack.
  __device__ void add(int k, int i, const float (&terms)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      if constexpr (Share::kHeld) {
        sums_[j][k][i] += terms[j];
      } else if (i < share_.count(k)) {
        at(j, k, i) += terms[j];
      }
    }
  }
  // Every thread of the block calls it, after its last add().
  __device__ void finish() {
    if constexpr (Share::kHeld) {
      if constexpr (Share::kTeams > 1) join_teams();
      if (Share::team() == Share::kTeams - 1) write();
    }
  }

 private:
  __device__ float& at(int j, int k, int i) {
    return partial_[int64_t{j} * share_.channels + share_.channel(k) + i];
  }
  // The last team gets the sum over the teams, in their order.
  __device__ void join_teams() {
    __shared__ float joined[kCount][Share::kPacks][Pack<T>::kSize][Share::kThreads];
    const int thread = static_cast<int>(threadIdx.x) % Share::kThreads;
    for (int team = 0; team < Share::kTeams; team++) {
      if (Share::team() == team) {
#pragma unroll
        for (int k = 0; k < Share::kPacks; k++) {
          if (share_.count(k) <= 0) break;
#pragma unroll
          for (int i = 0; i < Pack<T>::kSize; i++) {
#pragma unroll
            for (int j = 0; j < kCount; j++) {
              float& sum = joined[j][k][i][thread];
              if (team > 0) sums_[j][k][i] += sum;
              sum = sums_[j][k][i];
            }
          }
        }
      }
      __syncthreads();
    }
  }
  __device__ void write() {
#pragma unroll
    for (int k = 0; k < Share::kPacks; k++) {
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) {
#pragma unroll
        for (int j = 0; j < kCount; j++) {
          if (i < share_.count(k)) at(j, k, i) = sums_[j][k][i];
        }
      }
    }
  }

  const Share& share_;
  float* partial_;
  float sums_[kCount][Share::kHeld ? Share::kPacks : 1][Pack<T>::kSize] = {};
};

// Calls f(RowShare{}) with the share that rows of so many channels want, in a kernel that has
// registers for so many packs of a row.
template <class T, int kHeldPacks, class F>
void with_row_share(int64_t channels, F f) {
  constexpr int kWarps = kRowThreads / kWarpSize;
  CHECK(channels < 1 << 30);
  const int64_t packs = pieces(channels, Pack<T>::kSize);
  if (packs <= kWarpSize * kHeldPacks) return f(RowShare<T, 1, kHeldPacks>{});
  if (packs <= kRowThreads * kHeldPacks) return f(RowShare<T, kWarps, kHeldPacks>{});
  return f(RowShare<T, kWarps, 0>{});
}

// How rows are shared out over the blocks of a backward pass: enough blocks for every processor
// that there is, few enough for the partial sums to stay small beside the rows.
struct RowBlocks {
  int64_t rows_each, count;  // rows_each: the same number for each team
  RowBlocks(int64_t rows, int64_t teams) {
    const int64_t rows_of_team = std::max<int64_t>(1, pieces(rows, kMostRowBlocks * teams));
    rows_each = rows_of_team * teams;
    count = pieces(rows, rows_each);
  }
};

// Of the partial sums that `blocks` leave, `sums` rows of channels each.
inline double partial_bytes(int64_t blocks, int64_t sums, int64_t channels) {
  return static_cast<double>(blocks * sums * channels * size_bytes(DType::fp32));
}

// first[c] += sum over blocks b of partials[b, 0, c], in a fixed order, and second[c] likewise of
// partials[b, 1, c]; partials (blocks, 2, channels), or (blocks, 1, channels) without `second`.
void add_partials(float* first, float* second, const float* partials, int64_t blocks,
                  int64_t channels, Stream& stream);

}  // namespace lockstep::kernels::cuda
