#include "trainer/batch_loader.h"

#include <algorithm>
#include <vector>

namespace lockstep {

BatchLoader::BatchLoader(const TokenStream& tokens, const Sampler& sampler, const BatchPlan& plan)
    : BatchSource(plan),
      stream_(tokens),
      sampler_(sampler),
      tokens_(DType::int32, {plan.worker_sequences(), plan.sequence_length}),
      targets_(DType::int32, {plan.worker_sequences(), plan.sequence_length}) {}

Batch BatchLoader::batch(int64_t step) {
  const int64_t first = plan_.rank * plan_.worker_sequences();
  const int64_t length = plan_.sequence_length;
  std::vector<int32_t> window(static_cast<size_t>(length + 1));
  for (int64_t b = 0; b < plan_.worker_sequences(); b++) {
    stream_.copy(sampler_.first_token(step, first + b), length + 1, window.data());
    std::copy_n(window.begin(), length, tokens_.tensor().as<int32_t>() + b * length);
    std::copy_n(window.begin() + 1, length, targets_.tensor().as<int32_t>() + b * length);
  }
  return {tokens_.tensor(), targets_.tensor(), nullptr, static_cast<uint32_t>(first)};
}

}  // namespace lockstep
