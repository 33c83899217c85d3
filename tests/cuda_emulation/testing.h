#pragma once
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "cuda_emulation/errors.h"

// What the tests of the emulated device share.
namespace cuda_emulation::tests {

inline constexpr int kNumSeeds = 50;

// As a process that starts with this seed.
inline void begin_with_seed(int seed) {
  setenv("LOCKSTEP_EMULATION_SEED", std::to_string(seed).c_str(), 1);
  ASSERT_EQ(cudaDeviceReset(), cudaSuccess);
}

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreateWithFlags(&native_, cudaStreamNonBlocking), cudaSuccess); }
  ~Stream() { cudaStreamDestroy(native_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return native_; }

 private:
  cudaStream_t native_ = nullptr;
};

class Event {
 public:
  Event() { EXPECT_EQ(cudaEventCreateWithFlags(&native_, cudaEventDisableTiming), cudaSuccess); }
  ~Event() { cudaEventDestroy(native_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return native_; }

 private:
  cudaEvent_t native_ = nullptr;
};

// Memory of the device (full of NaN, or a copy of values), or pinned memory of the host.
template <class T>
class Array {
 public:
  explicit Array(size_t size, bool pinned = false) : size_(size), pinned_(pinned) {
    void* memory = nullptr;
    EXPECT_EQ(pinned ? cudaHostAlloc(&memory, size_bytes(), cudaHostAllocDefault)
                     : cudaMalloc(&memory, size_bytes()),
              cudaSuccess);
    data_ = static_cast<T*>(memory);
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_bytes(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~Array() { free(); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  void free() {
    if (data_ == nullptr) return;
    pinned_ ? cudaFreeHost(data_) : cudaFree(data_);
    data_ = nullptr;
  }
  T* data() const { return data_; }
  size_t size_bytes() const { return size_ * sizeof(T); }
  T& operator[](size_t i) { return data_[i]; }  // of pinned memory
  std::vector<T> values() const {
    std::vector<T> out(size_);
    EXPECT_EQ(cudaMemcpy(out.data(), data_, size_bytes(), cudaMemcpyDeviceToHost), cudaSuccess);
    return out;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
  bool pinned_;
};

// Runs what tests report, whose messages on stderr are no news; returns what was said.
template <class F>
std::string said_by(F work) {
  testing::internal::CaptureStderr();
  work();
  return testing::internal::GetCapturedStderr();
}

}  // namespace cuda_emulation::tests
