#pragma once
#include "data/dataset.h"
#include "data/sampler.h"
#include "trainer/batch_source.h"

namespace lockstep {

// From a split, which must outlive it, in the sampler's order.
class BatchLoader : public BatchSource {
 public:
  BatchLoader(const TokenStream& tokens, const Sampler& sampler, const BatchPlan& plan);
  Batch batch(int64_t step) override;

 private:
  const TokenStream& stream_;
  const Sampler sampler_;
  Buffer tokens_, targets_;  // (worker_sequences, sequence_length) int32
};

}  // namespace lockstep
