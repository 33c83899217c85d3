#include "model/batch_staging.h"

namespace lockstep {

BatchStaging::BatchStaging(Device device, int64_t sequences, int64_t length) : device_(device) {
  if (device == Device::cpu) return;
  const Shape shape = there_shape(sequences, length);
  for (Slot& slot : slots_) {
    slot.tokens_and_targets = Buffer::pinned(DType::int32, shape, device);
    slot.copied = Event(device);
  }
  there_ = Buffer(DType::int32, shape, device);
}

Batch BatchStaging::on_device(const Batch& batch, Stream& stream) {
  if (device_ == Device::cpu) return batch;
  const Shape shape = batch.tokens.shape();
  const Shape both{2, shape.size()};
  Slot& slot = slots_[next_];
  next_ = 1 - next_;
  slot.copied.synchronize();
  const Tensor pinned = slot.tokens_and_targets.tensor(DType::int32, both);
  copy(pinned.slice(0, 1).reshape(shape), batch.tokens, stream);
  copy(pinned.slice(1, 2).reshape(shape), batch.targets, stream);
  const Tensor there = there_.tensor(DType::int32, both);
  copy(there, pinned, stream);
  slot.copied.record(stream);
  Batch on_device = batch;
  on_device.tokens = there.slice(0, 1).reshape(shape);
  on_device.targets = there.slice(1, 2).reshape(shape);
  return on_device;
}

}  // namespace lockstep
