#pragma once
#include <array>

#include "core/device.h"
#include "core/tensor.h"
#include "model/transformer.h"

namespace lockstep {

// Brings batches from the CPU's memory to the device that computes, while the host goes on: through
// pinned buffers, so that the host may reuse the batch's own memory at once.
class BatchStaging {
 public:
  // For batches of at most so many sequences of so many tokens.
  BatchStaging(Device device, int64_t sequences, int64_t length);

  int64_t device_bytes() const { return there_.size_bytes(); }
  static int64_t device_bytes(Device device, int64_t sequences, int64_t length) {
    return device == Device::cpu ? 0
                                 : there_shape(sequences, length).size() * size_bytes(DType::int32);
  }

  // The batch with tensors on the device, valid for what is enqueued in `stream` until the next
  // call. On the CPU it is `batch` itself.
  Batch on_device(const Batch& batch, Stream& stream);

 private:
  static Shape there_shape(int64_t sequences, int64_t length) { return {2, sequences * length}; }
  // The copy from one is under way while the next is filled.
  struct Slot {
    Buffer tokens_and_targets;  // (2, B * T) int32, pinned
    Event copied;
  };
  const Device device_;
  std::array<Slot, 2> slots_;
  size_t next_ = 0;
  Buffer there_;  // (2, B * T) int32
};

}  // namespace lockstep
