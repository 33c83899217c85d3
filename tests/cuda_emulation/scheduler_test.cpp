#include "cuda_emulation/scheduler.h"

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "cuda_emulation/device_code.h"
#include "cuda_emulation/testing.h"

// Programs of two streams and a host: right ones give one result in every seed, and each of the
// usual faults is seen.
namespace cuda_emulation::tests {
namespace {

constexpr int kSize = 100, kThreads = 32, kSteps = 3;
const dim3 kBlocks((kSize + kThreads - 1) / kThreads);

void add_kernel(float* out, const float* a, const float* b, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < size) out[i] = a[i] + b[i];
}
void add(float* out, const float* a, const float* b, cudaStream_t stream) {
  ASSERT_EQ(launch(add_kernel, kBlocks, dim3(kThreads), 0, stream, out, a, b, kSize), cudaSuccess);
}

enum class Fault {
  none,
  no_wait_for_the_copy,
  no_wait_for_the_sum,
  no_synchronisation,
  freed_early,
  pinned_rewritten,
  target_rewritten
};

// Each step copies a batch of numbers to the device on one stream, adds it to a sum on another, and
// copies the sum back on the first. Returns all bits that the host saw.
std::vector<float> run_program(Fault fault) {
  std::vector<float> seen;
  Stream copies, sums;
  Event copied, summed, read;
  Array<float> pinned(kSize, true), result(kSize, true);
  Array<float> batch(kSize);
  Array<float> total(std::vector<float>(kSize, 0.0f));
  for (int step = 1; step <= kSteps; step++) {
    Array<float> twice(kSize);
    if (fault != Fault::pinned_rewritten) EXPECT_EQ(cudaEventSynchronize(copied), cudaSuccess);
    for (int i = 0; i < kSize; i++) pinned[static_cast<size_t>(i)] = static_cast<float>(step * i);
    if (fault != Fault::target_rewritten) cudaStreamWaitEvent(copies, summed, 0);
    cudaMemcpyAsync(batch.data(), pinned.data(), batch.size_bytes(), cudaMemcpyHostToDevice,
                    copies);
    cudaEventRecord(copied, copies);
    if (fault != Fault::no_wait_for_the_copy) cudaStreamWaitEvent(sums, copied, 0);
    add(twice.data(), batch.data(), batch.data(), sums);
    add(total.data(), total.data(), twice.data(), sums);
    cudaEventRecord(summed, sums);
    if (fault == Fault::freed_early) twice.free();
    if (fault != Fault::no_wait_for_the_sum) cudaStreamWaitEvent(copies, summed, 0);
    cudaMemcpyAsync(result.data(), total.data(), total.size_bytes(), cudaMemcpyDeviceToHost,
                    copies);
    cudaEventRecord(read, copies);
    if (fault != Fault::pinned_rewritten && fault != Fault::target_rewritten) {
      if (fault != Fault::no_synchronisation) cudaEventSynchronize(read);
      for (size_t i = 0; i < kSize; i++) seen.push_back(result[i]);
    }
    cudaStreamWaitEvent(sums, read, 0);
    if (fault != Fault::freed_early && step == kSteps) cudaDeviceSynchronize();
    if (twice.data() != nullptr && fault != Fault::none) cudaStreamSynchronize(sums);
  }
  cudaDeviceSynchronize();
  for (size_t i = 0; i < kSize; i++) seen.push_back(result[i]);
  return seen;
}

// How many seeds see the fault: another result than the right one of the end, or an error.
int num_seeds_that_see(Fault fault) {
  int seen = 0;
  said_by([&] {
    for (int seed = 0; seed < kNumSeeds; seed++) {
      begin_with_seed(seed);
      const std::vector<float> got = run_program(fault);
      bool right = cudaGetLastError() == cudaSuccess;
      for (size_t i = 0; i < got.size(); i++) {
        const size_t from_end = (got.size() - 1 - i) / kSize;  // steps' results, the last one twice
        const auto step = static_cast<int>(got.size() / kSize - 1) - static_cast<int>(from_end);
        const int steps = got.size() == kSize ? kSteps : std::min(step + 1, kSteps);
        const int sum = steps * (steps + 1) * static_cast<int>(i % kSize);
        right = right && got[i] == static_cast<float>(sum);
      }
      seen += right ? 0 : 1;
    }
    begin_with_seed(0);
  });
  return seen;
}

TEST(Scheduler, ARightProgramIsRightInEverySeed) { EXPECT_EQ(num_seeds_that_see(Fault::none), 0); }
// Each of these is seen with the odds of most seeds; a few seeds run work so eagerly that they hide
// it, as a device may.
TEST(Scheduler, ARemovedWaitForACopyIsSeen) {
  EXPECT_GT(num_seeds_that_see(Fault::no_wait_for_the_copy), kNumSeeds / 4);
}
TEST(Scheduler, ARemovedWaitForAKernelIsSeen) {
  EXPECT_GT(num_seeds_that_see(Fault::no_wait_for_the_sum), kNumSeeds / 4);
}
TEST(Scheduler, ARemovedSynchronisationIsSeen) {
  EXPECT_GT(num_seeds_that_see(Fault::no_synchronisation), kNumSeeds / 4);
}
TEST(Scheduler, ABufferFreedEarlyIsSeen) {
  EXPECT_GT(num_seeds_that_see(Fault::freed_early), kNumSeeds / 4);
}
TEST(Scheduler, APinnedBufferRewrittenTooEarlyIsSeen) {
  EXPECT_GT(num_seeds_that_see(Fault::pinned_rewritten), kNumSeeds / 4);
}
TEST(Scheduler, ATargetRewrittenTooEarlyIsSeen) {
  EXPECT_GT(num_seeds_that_see(Fault::target_rewritten), kNumSeeds / 8);
}

TEST(Scheduler, NothingNeedRunWhenItIsEnqueued) {
  int num_at_once = 0;
  for (int seed = 0; seed < kNumSeeds; seed++) {
    begin_with_seed(seed);
    Stream stream;
    int ran = 0;
    const auto count = [](void* counter) { ++*static_cast<int*>(counter); };
    cudaLaunchHostFunc(stream, count, &ran);
    num_at_once += ran;
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(ran, 1);
  }
  EXPECT_GT(num_at_once, 0);
  EXPECT_LT(num_at_once, kNumSeeds / 2);
}

TEST(Scheduler, StreamsInterleaveInManyWays) {
  std::set<std::string> orders;
  for (int seed = 0; seed < kNumSeeds; seed++) {
    begin_with_seed(seed);
    Stream a, b;
    std::string order;
    for (int i = 0; i < 4; i++) {
      cudaLaunchHostFunc(
          a, [](void* to) { *static_cast<std::string*>(to) += 'a'; }, &order);
      cudaLaunchHostFunc(
          b, [](void* to) { *static_cast<std::string*>(to) += 'b'; }, &order);
    }
    cudaDeviceSynchronize();
    EXPECT_EQ(order.size(), 8u);
    orders.insert(order);
  }
  EXPECT_GT(orders.size(), 8u);
}

TEST(Scheduler, ASeedRepeatsItsOrder) {
  std::set<std::string> orders;
  for (int repeat = 0; repeat < 5; repeat++) {
    begin_with_seed(7);
    Stream streams[3];
    std::string order;
    for (int i = 0; i < 12; i++) {
      const auto note = [](void* to) { *static_cast<std::string*>(to) += 'x'; };
      cudaLaunchHostFunc(streams[i % 3], note, &order);
      order += static_cast<char>('0' + i % 3);
    }
    cudaDeviceSynchronize();
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 1u);
}

TEST(Scheduler, ADestroyedStreamStillRunsItsWork) {
  begin_with_seed(3);
  int ran = 0;
  {
    Stream stream;
    cudaLaunchHostFunc(
        stream, [](void* counter) { ++*static_cast<int*>(counter); }, &ran);
  }
  cudaDeviceSynchronize();
  EXPECT_EQ(ran, 1);
}

TEST(Scheduler, TheLegacyStreamComesBetweenWorkOfBlockingStreams) {
  for (int seed = 0; seed < kNumSeeds; seed++) {
    begin_with_seed(seed);
    cudaStream_t blocking = nullptr;
    ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
    std::string order;
    cudaLaunchHostFunc(
        blocking, [](void* to) { *static_cast<std::string*>(to) += '1'; }, &order);
    cudaLaunchHostFunc(
        nullptr, [](void* to) { *static_cast<std::string*>(to) += '2'; }, &order);
    cudaLaunchHostFunc(
        blocking, [](void* to) { *static_cast<std::string*>(to) += '3'; }, &order);
    cudaStreamSynchronize(blocking);
    EXPECT_EQ(order, "123");
    cudaStreamDestroy(blocking);
  }
}

TEST(Scheduler, WorkRunsWhileTheHostIsIdle) {
  begin_with_seed(0);
  Stream stream;
  std::atomic<int> ran = 0;
  cudaLaunchHostFunc(
      stream, [](void* counter) { ++*static_cast<std::atomic<int>*>(counter); }, &ran);
  for (int i = 0; i < 1000 && ran == 0; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(ran, 1);
}

}  // namespace
}  // namespace cuda_emulation::tests
