#pragma once
#include <vector>

#include "comm/communicator.h"
#include "comm/reduction_tree.h"
#include "comm/sharding.h"
#include "core/range.h"

namespace lockstep {

// Sums the gradients of V virtual workers along one fixed tree, whatever the number of workers
// (docs/determinism.md): each worker joins the whole subtrees that it owns, sends every peer its
// run of them (all-to-all), and joins what it receives. What travels is in `dtype`: fp32, or bf16,
// to which every term and every sum but the last is rounded (nothing where V is 1); sums are made
// in fp32.
class OrderedReduction {
 public:
  // gradients (padded_size) fp32 must outlive this.
  OrderedReduction(const Sharding& sharding, const Tensor& gradients, DType dtype);

  // The buffer holds the gradients of this worker's next virtual worker, which is not its last one.
  // Keeps them; the buffer may be overwritten on return.
  void keep(Stream& stream);

  // The same of its last virtual worker, and only bucket `b`: leaves the sums over all virtual
  // workers in this worker's run of it, and leaves anything in the rest of the bucket. Collective.
  void reduce(int b, Communicator& communicator, Stream& stream);

  // After the last bucket.
  void start_over() { kept_nodes_.clear(), kept_count_ = 0; }

  std::vector<Tensor> buffers() const;  // that it sends or receives, beside the gradients
  int64_t memory_bytes() const;         // of them

 private:
  Tensor kept(size_t i, const Range& range) const;

  Sharding sharding_;
  Tensor gradients_;
  DType dtype_;
  ReductionTree tree_;
  int kept_count_ = 0;  // virtual workers
  std::vector<TreeNode> kept_nodes_;
  std::vector<Buffer> kept_;  // (padded_size) each

  // For the last virtual worker's gradients behind the kept ones, and for what the workers then
  // have, by rank.
  ReductionTree::Joined own_, all_;
  std::vector<int> pieces_;  // by rank: subtrees that it sends
  int rounds_ = 0;           // the largest of them
  Buffer sent_;              // (largest bucket), where dtype is not fp32
  Buffer received_;          // (rounds, largest bucket)
};

}  // namespace lockstep
