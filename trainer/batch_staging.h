#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "model/transformer.h"

namespace lockstep {

// Brings batches from the CPU's memory to the device that computes, one ahead: while one is
// computed with, the next travels in a stream of its own, from pinned memory. All batches stand at
// one address in turn, so that a Graph finds them. On the CPU they stay where they are.
class BatchStaging {
 public:
  // For batches of so many sequences of so many tokens.
  BatchStaging(Device device, int64_t sequences, int64_t length);

  int64_t device_bytes() const { return arrived_.size_bytes() + current_.size_bytes(); }

  // Sends a batch, whose memory may be used again on return (on the CPU: after the next take()).
  void stage(const Batch& batch);
  // The batch that was staged, for what is enqueued in `stream` from here on until the next call.
  Batch take(Stream& stream);

 private:
  const Device device_;
  Batch staged_;
  Buffer pinned_, arrived_, current_;  // (2, B, T) int32: tokens, targets
  Stream copies_;
  Event arrived_there_, taken_;
};

}  // namespace lockstep
