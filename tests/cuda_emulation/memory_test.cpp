#include "cuda_emulation/memory.h"

#include <cmath>

#include "cuda_emulation/device_code.h"
#include "cuda_emulation/scheduler.h"
#include "cuda_emulation/testing.h"

namespace cuda_emulation::tests {
namespace {

void fill_kernel(float* out, int begin, int end) {
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += 32) out[i] = 1;
}
void copy_kernel(float* out, const float* in, int size) {
  for (int i = static_cast<int>(threadIdx.x); i < size; i += 32) out[i] = in[i];
}

constexpr int kSize = 100;

class Memory : public testing::Test {
 protected:
  void SetUp() override { begin_with_seed(1); }
  void TearDown() override {
    said_by([] { begin_with_seed(0); });
  }
  // Of what is outside of allocations. Where AddressSanitizer watches it, it ends the program
  // there.
  static bool may_touch_red_zones() {
#if defined(__SANITIZE_ADDRESS__)
    return false;
#else
    return true;
#endif
  }
  cudaError_t fill(float* out, int begin, int end) {
    const auto code = launch(fill_kernel, dim3(1), dim3(32), 0, nullptr, out, begin, end);
    return code == cudaSuccess ? cudaDeviceSynchronize() : code;
  }
};

TEST_F(Memory, WritesPastTheEndAreSeen) {
  if (!may_touch_red_zones()) GTEST_SKIP();
  Array<float> array(kSize);
  EXPECT_EQ(fill(array.data(), 0, kSize), cudaSuccess);
  const std::string said =
      said_by([&] { EXPECT_EQ(fill(array.data(), 0, kSize + 1), cudaErrorIllegalAddress); });
  EXPECT_NE(said.find("wrote past the end of 400 bytes, at +0"), std::string::npos) << said;
}

TEST_F(Memory, WritesBeforeTheBeginAreSeen) {
  if (!may_touch_red_zones()) GTEST_SKIP();
  Array<float> array(kSize);
  said_by([&] { EXPECT_EQ(fill(array.data(), -1, kSize), cudaErrorIllegalAddress); });
}

TEST_F(Memory, ReadsPastTheEndAndOfFreshMemoryAreNaN) {
  if (!may_touch_red_zones()) GTEST_SKIP();
  Array<float> in(kSize), out(kSize + 1);
  EXPECT_EQ(fill(in.data(), 1, kSize), cudaSuccess);
  launch(copy_kernel, dim3(1), dim3(32), 0, nullptr, out.data(), in.data(), kSize + 1);
  const std::vector<float> values = out.values();
  EXPECT_TRUE(std::isnan(values.front()));
  EXPECT_EQ(values[1], 1);
  EXPECT_TRUE(std::isnan(values.back()));
}

TEST_F(Memory, AnErrorStays) {
  if (!may_touch_red_zones()) GTEST_SKIP();
  Array<float> array(kSize);
  said_by([&] { fill(array.data(), 0, kSize + 1); });
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 4), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorIllegalAddress);
  EXPECT_EQ(fill(array.data(), 0, 1), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
}

TEST_F(Memory, AddressesOfNobodyAreSeen) {
  float of_host = 0;
  Array<float> freed(kSize);
  float* const dangling = freed.data();
  freed.free();
  for (float* const address : {&of_host, dangling}) {
    said_by([&] {
      EXPECT_EQ(fill(address, 0, 1), cudaErrorIllegalAddress);
      begin_with_seed(1);
    });
  }
  EXPECT_EQ(fill(nullptr, 0, 0), cudaSuccess);
}

TEST_F(Memory, FreeingTwiceIsRefused) {
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 4), cudaSuccess);
  said_by([&] {
    EXPECT_EQ(cudaFreeHost(memory), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFree(memory), cudaSuccess);
    EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  });
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);  // it does not stay
}

TEST_F(Memory, IsAlignedTo256BytesAndNoMore) {
  for (int i = 0; i < 10; i++) {
    Array<char> array(1);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(array.data()) % 512, 256u);
  }
}

TEST_F(Memory, StreamOrderedMemoryLivesBetweenItsMallocAndItsFree) {
  for (int seed = 0; seed < kNumSeeds; seed++) {
    begin_with_seed(seed);
    Stream stream;
    Array<float> out(kSize);
    void* memory = nullptr;
    EXPECT_EQ(cudaMallocAsync(&memory, out.size_bytes(), stream), cudaSuccess);
    cudaMemsetAsync(memory, 0, out.size_bytes(), stream);
    cudaMemcpyAsync(out.data(), memory, out.size_bytes(), cudaMemcpyDeviceToDevice, stream);
    EXPECT_EQ(cudaFreeAsync(memory, stream), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(out.values().back(), 0);
  }
}

TEST_F(Memory, CopiesOfPageableMemoryAreDoneAtOnce) {
  Stream stream;
  Array<int> array(kSize);
  std::vector<int> in(kSize + 1, 7), out(kSize);
  cudaMemcpyAsync(array.data(), in.data(), array.size_bytes(), cudaMemcpyDefault, stream);
  in[0] = 9;
  cudaMemcpyAsync(out.data(), array.data(), array.size_bytes(), cudaMemcpyDeviceToHost, stream);
  EXPECT_EQ(out[0], 7);
  said_by([&] {
    EXPECT_EQ(cudaMemcpy(out.data(), in.data(), 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemset(out.data(), 0, 4), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(array.data(), in.data(), array.size_bytes() + 1, cudaMemcpyDefault),
              cudaErrorIllegalAddress);
  });
}

TEST_F(Memory, LeaksAreNamed) {
  const std::string before = leaks();
  EXPECT_EQ(before, "");
  cudaStream_t stream = nullptr;
  cudaStreamCreate(&stream);
  Array<char> array(10), pinned(20, true);
  EXPECT_EQ(leaks(),
            "  1 allocations of device memory, 10 bytes\n  1 allocations of pinned memory, 20 "
            "bytes\n  1 streams\n");
  cudaStreamDestroy(stream);
}

// What the environment sets when a process starts: in a process of its own.
class MemoryDeathTest : public testing::Test {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
  void set(const char* name, const char* value) { setenv(name, value, 1), name_ = name; }
  void TearDown() override { unsetenv(name_); }

 private:
  const char* name_ = "";
};

TEST_F(MemoryDeathTest, TheLimitIsKept) {
  set("LOCKSTEP_EMULATION_MEMORY_MB", "2");
  const auto fill_memory = [] {
    void *first = nullptr, *second = nullptr;
    size_t free = 0, total = 0;
    const bool fits = cudaMalloc(&first, 3 << 19) == cudaSuccess;
    const bool refused = cudaMalloc(&second, 1 << 20) == cudaErrorMemoryAllocation;
    cudaMemGetInfo(&free, &total);
    const bool known = total == 2 << 20 && free == 1 << 19;
    cudaFree(first);
    std::exit(fits && refused && known && cudaMalloc(&second, 1 << 20) == cudaSuccess ? 0 : 1);
  };
  EXPECT_EXIT(fill_memory(), testing::ExitedWithCode(0), "1 allocations of device memory");
}

TEST_F(MemoryDeathTest, LeaksFailTheProcessWhereThatIsWanted) {
  set("LOCKSTEP_EMULATION_LEAKS", "fail");
  const auto leak = [] {
    cudaEvent_t event = nullptr;
    cudaEventCreate(&event);
    std::exit(0);
  };
  EXPECT_EXIT(leak(), testing::ExitedWithCode(1), "1 events");
}

TEST_F(MemoryDeathTest, TheHostFaultsOnDeviceMemoryWhereItIsGuarded) {
  set("LOCKSTEP_EMULATION_GUARD", "1");
  const auto touch = [] {
    Array<float> array(std::vector<float>(kSize, 1.0f));
    if (array.values()[0] != 1) std::exit(0);
    const volatile float* address = array.data();
    std::exit(*address == 1 ? 0 : 1);
  };
  EXPECT_DEATH(touch(), "");
}

}  // namespace
}  // namespace cuda_emulation::tests
