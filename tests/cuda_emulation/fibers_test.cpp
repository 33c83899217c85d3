#include "cuda_emulation/fibers.h"

#include <algorithm>
#include <numeric>

#include "cuda_emulation/device_code.h"
#include "cuda_emulation/testing.h"

namespace cuda_emulation::tests {
namespace {

constexpr int kThreads = 96;
constexpr ThreadOrder kOrders[] = {ThreadOrder::forward, ThreadOrder::reverse, ThreadOrder::random};

// The sum of the block's values in each of out, by shared memory and shuffles. Without the barrier
// some thread reads what another has yet to write.
template <bool kBarrier>
void sum_kernel(float* out, const float* in) {
  auto* partial = static_cast<float*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  const auto i = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = in[i];
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(~0u, sum, distance);
  }
  if (thread % 32 == 0) partial[thread / 32] = sum;
  if constexpr (kBarrier) __syncthreads();
  float total = 0;
  for (int warp = 0; warp < kThreads / 32; warp++) total += partial[warp];
  out[i] = total;
}

template <bool kBarrier>
bool sums_are_right(ThreadOrder order) {
  constexpr int kBlocks = 5;
  std::vector<float> in(kThreads * kBlocks), out(in.size());
  std::iota(in.begin(), in.end(), 0.0f);
  const Grid grid{dim3(kBlocks), dim3(kThreads), kThreads / 32 * sizeof(float)};
  EXPECT_EQ(run_grid(grid, order, 1, [&] { sum_kernel<kBarrier>(out.data(), in.data()); }), "");
  for (size_t i = 0; i < out.size(); i++) {
    const auto block = static_cast<int>(i) / kThreads;
    const int first = block * kThreads;
    const int sum = kThreads * first + kThreads * (kThreads - 1) / 2;
    if (out[i] != static_cast<float>(sum)) return false;
  }
  return true;
}

TEST(Fibers, BlocksSumInEveryOrder) {
  for (const ThreadOrder order : kOrders) EXPECT_TRUE(sums_are_right<true>(order));
}

TEST(Fibers, ARemovedBarrierIsSeenInEveryOrder) {
  for (const ThreadOrder order : kOrders) EXPECT_FALSE(sums_are_right<false>(order));
}

// Sums twice, by the same shared memory. Without a barrier in between, a warp that is ahead
// overwrites what another has yet to read; which takes a scheduler that is not fair.
template <bool kBarrier>
bool second_sums_are_right(uint64_t seed) {
  std::vector<float> out(kThreads, 0);
  const Grid grid{dim3(1), dim3(kThreads), kThreads / 32 * sizeof(float)};
  const auto kernel = [&] {
    auto* partial = static_cast<float*>(dynamic_shared());
    const int thread = static_cast<int>(threadIdx.x);
    for (int round = 1; round <= 2; round++) {
      auto sum = static_cast<float>(round);
      for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(~0u, sum, distance);
      }
      if (thread % 32 == 0) partial[thread / 32] = sum;
      __syncthreads();
      for (int warp = 0; warp < kThreads / 32; warp++) out[threadIdx.x] += partial[warp];
      if constexpr (kBarrier) __syncthreads();
    }
  };
  EXPECT_EQ(run_grid(grid, ThreadOrder::random, seed, kernel), "");
  return std::count(out.begin(), out.end(), 3.0f * kThreads) == kThreads;
}

TEST(Fibers, AWarpMayRunAheadOfTheOthers) {
  int seen = 0;
  for (uint64_t seed = 0; seed < 20; seed++) {
    EXPECT_TRUE(second_sums_are_right<true>(seed));
    seen += second_sums_are_right<false>(seed) ? 0 : 1;
  }
  EXPECT_GE(seen, 5);
}

TEST(Fibers, EachThreadRunsOnceAtItsPlace) {
  for (const ThreadOrder order : kOrders) {
    const dim3 blocks(3, 2, 2), threads(4, 5, 3);
    std::vector<int> times(3 * 2 * 2 * 4 * 5 * 3);
    run_grid({blocks, threads}, order, 2, [&] {
      const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      times[block * 60 + thread]++;
    });
    for (const int count : times) EXPECT_EQ(count, 1);
  }
}

TEST(Fibers, WarpsExchange) {
  for (const ThreadOrder order : kOrders) {
    constexpr int kLanes = 40;  // the second warp is not full
    run_grid({dim3(1), dim3(kLanes)}, order, 3, [&] {
      const auto thread = static_cast<int>(threadIdx.x), first = thread / 32 * 32;
      const int lanes = first == 0 ? 32 : kLanes - 32, lane = thread - first;
      EXPECT_EQ(__shfl_sync(~0u, thread, 3), first + 3);
      EXPECT_EQ(__shfl_sync(~0u, 2.0 * thread, 1, 4), 2.0 * (first + lane / 4 * 4 + 1));
      EXPECT_EQ(__shfl_up_sync(~0u, thread, 1), lane == 0 ? thread : thread - 1);
      const int down = __shfl_down_sync(~0u, thread, 2);
      if (lane + 2 < lanes) {
        EXPECT_EQ(down, thread + 2);
      }
      EXPECT_EQ(__ballot_sync(~0u, lane % 2), 0xaaaaaaaau & (~0u >> (32 - lanes)));
      EXPECT_TRUE(__any_sync(~0u, lane == 5));
      EXPECT_FALSE(__all_sync(~0u, lane == 5));
      EXPECT_EQ(__match_any_sync(~0u, lane / 16),
                lane < 16 ? 0xffffu & (~0u >> (32 - lanes)) : 0xffff0000u);
      if (lane < 8) {
        EXPECT_EQ(__shfl_xor_sync(0xffu, thread, 7), first + (lane ^ 7));
      }
    });
  }
}

TEST(Fibers, ThreadsThatEndAreNotWaitedFor) {
  for (const ThreadOrder order : kOrders) {
    int passed = 0;
    EXPECT_EQ(run_grid({dim3(4), dim3(64)}, order, 4,
                       [&] {
                         if (threadIdx.x % 3 == 0) return;
                         __syncthreads();
                         __syncwarp();
                         passed++;
                       }),
              "");
    EXPECT_EQ(passed, 4 * 42);
  }
}

TEST(Fibers, ThreadsThatWaitForEverAreReported) {
  for (const ThreadOrder order : kOrders) {
    EXPECT_NE(run_grid({dim3(2), dim3(32)}, order, 5,
                       [] {
                         if (threadIdx.x == 0) {
                           __shfl_sync(~0u, 1, 0);
                         } else {
                           __syncthreads();
                         }
                       }),
              "");
    EXPECT_TRUE(sums_are_right<true>(order));  // the next grid is none the worse
  }
}

TEST(Fibers, SharedMemoryBeginsAsNaN) {
  run_grid({dim3(2), dim3(1), 64}, ThreadOrder::forward, 6, [] {
    auto* shared = static_cast<float*>(dynamic_shared());
    EXPECT_TRUE(std::isnan(shared[7]));
    shared[7] = 1;
  });
}

TEST(Fibers, AGridThatADeviceCouldNotRunIsRefused) {
  Stream stream;
  const auto refused = [&](dim3 blocks, dim3 threads, size_t shared_bytes) {
    const auto code = launch(
        +[](int) {}, blocks, threads, shared_bytes, stream, 1);
    cudaGetLastError();
    return code == cudaErrorInvalidConfiguration;
  };
  said_by([&] {
    EXPECT_FALSE(refused(dim3(1), dim3(1024), 227 * 1024));
    EXPECT_TRUE(refused(dim3(1), dim3(1025), 0));
    EXPECT_TRUE(refused(dim3(1), dim3(1, 1, 65), 0));
    EXPECT_TRUE(refused(dim3(1, 65536), dim3(1), 0));
    EXPECT_TRUE(refused(dim3(1), dim3(1), 227 * 1024 + 1));
    EXPECT_TRUE(refused(dim3(0), dim3(1), 0));
  });
  cudaStreamSynchronize(stream);
}

}  // namespace
}  // namespace cuda_emulation::tests
