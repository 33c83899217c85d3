#pragma once
#include "core/device.h"
#include "core/mirrored.h"
#include "core/tensor.h"
#include "kernels/dropout.h"
#include "tests/kernels/testing.h"

// What the tests of kernels in CUDA share: they run a kernel on the device and its twin on the CPU,
// from the same values.
namespace lockstep::kernels::tests {

// A copy of values in the device's memory. `shift` elements before them take them off the alignment
// that memory has by itself. Memory behind them belongs to nobody: the emulated device notices who
// writes there.
template <class T>
class OnDevice {
 public:
  OnDevice(Values<T> values, Stream& stream, int64_t shift = 0)
      : values_(std::move(values)),
        stream_(stream),
        memory_(kDTypeOf<T>, {shift + values_.size()}, Device::cuda),
        tensor_(memory_.tensor()
                    .slice(shift, shift + values_.size())
                    .reshape(values_.tensor().shape())) {
    copy(tensor_, values_.tensor(), stream_);
    stream_.synchronize();
  }
  Tensor tensor() const { return tensor_; }
  // As they are once everything that was enqueued has run.
  const Values<T>& values() {
    copy(values_.tensor(), tensor_, stream_);
    stream_.synchronize();
    return values_;
  }

 private:
  Values<T> values_;
  Stream& stream_;
  Buffer memory_;
  Tensor tensor_;
};

// A mask whose step is in the device's memory.
class MaskOnDevice {
 public:
  MaskOnDevice(const DropoutMask& mask, Stream& stream) : step_(stream.device()), mask_(mask) {
    if (mask.step != nullptr) step_.host() = *mask.step;
    step_.upload(stream);
    mask_.step = step_.there();
  }
  operator const DropoutMask&() const { return mask_; }

 private:
  Mirrored<uint64_t> step_;
  DropoutMask mask_;
};

// Skips the test on a machine without a GPU; the emulated device always has one.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU here";
  }
};

}  // namespace lockstep::kernels::tests
