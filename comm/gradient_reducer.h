#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace lockstep {

// The summed gradients of parameters [begin, end) of the flat buffer: those that this worker
// updates.
struct GradientSlice {
  int64_t begin = 0, end = 0;
  Tensor gradients;  // (end - begin) fp32
};

// Sums the workers' gradients while backward still runs. The flat buffer is cut into buckets from
// its end, which backward completes first; a thread with a communicator of its own reduces each as
// soon as it is complete, always in that order, so that all workers agree on it (Li et al.,
// "PyTorch distributed", 2020). With one worker it does nothing.
class GradientReducer {
 public:
  static constexpr int64_t kBucketBytes = 25 << 20;

  // gradients (P) fp32 must outlive this. group_ranges: [begin, end) of each parameter group,
  // ascending and without gaps; backward completes the last group first. Collective.
  GradientReducer(Communicator& communicator, const Tensor& gradients,
                  std::vector<std::pair<int64_t, int64_t>> group_ranges,
                  int64_t bucket_bytes = kBucketBytes);
  ~GradientReducer();  // does not wait for peers

  // This worker's gradients of `group` are complete and stay untouched until finish() returns.
  // Starts the reduction of the buckets that this completes, and returns. Groups come last to
  // first.
  void layer_ready(int group);

  // Waits until every bucket is summed. Throws what a reduction threw. Every worker owns the whole
  // buffer here: the library's all-reduce leaves all sums everywhere.
  GradientSlice finish();

  int64_t num_buckets() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep
