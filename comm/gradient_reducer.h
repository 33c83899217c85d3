#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "comm/sharding.h"
#include "core/range.h"

namespace lockstep {

// Sums gradients over virtual workers and workers while backward still runs. Buckets (Sharding) are
// reduced over a communicator of its own, each as soon as backward has completed it and always in
// the same order, so that all workers agree on it (Li et al., "PyTorch distributed", 2020): on a
// GPU in a stream of its own, on CPUs by a thread. With one worker there is neither.
//
// Ordered (OrderedReduction): the same bits for any number of workers. Where the sharding is
// replicated: the library's all-reduce, in its own order; every worker is one virtual worker.
class GradientReducer {
 public:
  // stream: in which backward runs. gradients (padded_size) fp32, on the stream's device, zeros
  // behind the parameters; both must outlive this. group_ranges: of each parameter group, ascending
  // and without gaps; backward completes the last group first.
  // dtype: what travels in the ordered reduction, fp32 or bf16. Collective.
  GradientReducer(Communicator& communicator, Stream& stream, const Tensor& gradients,
                  const Sharding& sharding, std::vector<Range> group_ranges,
                  DType dtype = DType::fp32);
  ~GradientReducer();  // does not wait for peers

  // The gradients of `group` are complete, for this worker's next virtual worker; groups come last
  // to first; complete once what is enqueued in the stream has run. When group 0 of a virtual
  // worker that is not the last is, the buffer may be overwritten by what is enqueued after that.
  // For the last, starts the reduction of the buckets that this completes: the group must stay
  // untouched until finish() returns.
  void layer_ready(int group);

  // What is enqueued in the stream from here on comes after every bucket is summed: the buffer
  // holds the sums in the ranges that this worker updates (Sharding::updated). Throws what a
  // reduction threw.
  void finish();

  // A Graph that holds all these reductions was launched in the stream (Communicator::launched).
  void launched(const std::string& what, Stream& stream);

  // From any thread: gives up on peers that do not come (Communicator::cancel).
  void cancel();

  // Once the stream was synchronised after finish(): throws when a reduction failed meanwhile.
  void check();

  int64_t memory_bytes() const;  // beside the gradients

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep
