#include "trainer/batch_staging.h"

namespace lockstep {

BatchStaging::BatchStaging(Device device, int64_t sequences, int64_t length)
    : device_(device), copies_(device), arrived_there_(device), taken_(device) {
  if (device == Device::cpu) return;
  const Shape both{2, sequences, length};
  pinned_ = Buffer::pinned(DType::int32, both, device);
  arrived_ = Buffer(DType::int32, both, device);
  current_ = Buffer(DType::int32, both, device);
}

void BatchStaging::stage(const Batch& batch) {
  staged_ = batch;
  if (device_ == Device::cpu) return;
  const Shape one{1, batch.tokens.dim(0), batch.tokens.dim(1)};
  arrived_there_.synchronize();  // the copy of the one before, long ago
  copy(pinned_.tensor().slice(0, 1), batch.tokens.reshape(one), copies_);
  copy(pinned_.tensor().slice(1, 2), batch.targets.reshape(one), copies_);
  copies_.wait(taken_);
  copy(arrived_.tensor(), pinned_.tensor(), copies_);
  arrived_there_.record(copies_);
}

Batch BatchStaging::take(Stream& stream) {
  Batch batch = staged_;
  if (device_ == Device::cpu) return batch;
  stream.wait(arrived_there_);
  copy(current_.tensor(), arrived_.tensor(), stream);
  taken_.record(stream);
  batch.tokens = current_.tensor().slice(0, 1).reshape(staged_.tokens.shape());
  batch.targets = current_.tensor().slice(1, 2).reshape(staged_.targets.shape());
  return batch;
}

}  // namespace lockstep
