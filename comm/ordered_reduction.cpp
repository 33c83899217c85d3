#include "comm/ordered_reduction.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/reduce.h"

namespace lockstep {

OrderedReduction::OrderedReduction(const Sharding& sharding, const Tensor& gradients, DType dtype)
    : sharding_(sharding), gradients_(gradients), dtype_(dtype), tree_(sharding.virtual_workers()) {
  CHECK(gradients.dtype() == DType::fp32 && gradients.size() == sharding.padded_size());
  CHECK(dtype == DType::fp32 || dtype == DType::bf16, "gradients do not travel in {}", name(dtype));
  const Device device = gradients.device();
  const int each = sharding.virtual_workers_each(), first = sharding.rank() * each;

  size_t most = 0;
  std::vector<TreeNode> nodes;
  for (int v = first; v < first + each - 1; v++) {
    nodes.push_back(tree_.leaf(v));
    most = std::max(most, nodes.size());
    nodes = tree_.join(nodes).nodes;
  }
  for (size_t i = 0; i < most; i++) {
    kept_.push_back(Buffer::for_peers(dtype, {sharding.padded_size()}, device));
  }
  nodes.push_back(tree_.leaf(first + each - 1));
  own_ = tree_.join(nodes);

  std::vector<TreeNode> everywhere;
  for (int rank = 0; rank < sharding.workers(); rank++) {
    const auto pieces = tree_.join_leaves(rank * each, (rank + 1) * each).nodes;
    everywhere.insert(everywhere.end(), pieces.begin(), pieces.end());
    pieces_.push_back(static_cast<int>(pieces.size()));
  }
  all_ = tree_.join(everywhere);
  CHECK(all_.nodes.size() == 1 && all_.places.front() == 0);

  const int64_t largest = sharding.bucket(0).size();  // only the last one is smaller
  if (dtype != DType::fp32 && sharding.virtual_workers() > 1)
    sent_ = Buffer::for_peers(dtype, {largest}, device);
  if (sharding.workers() == 1) return;
  rounds_ = *std::max_element(pieces_.begin(), pieces_.end());
  received_ = Buffer::for_peers(dtype, {rounds_, largest}, device);
}

Tensor OrderedReduction::kept(size_t i, const Range& range) const {
  return kept_[i].tensor().slice(range.begin, range.end);
}

void OrderedReduction::keep(Stream& stream) {
  const int virtual_worker = sharding_.rank() * sharding_.virtual_workers_each() + kept_count_++;
  CHECK(kept_count_ < sharding_.virtual_workers_each(), "the last one is not kept");
  kept_nodes_.push_back(tree_.leaf(virtual_worker));
  const Range everything{0, gradients_.size()};
  kernels::cast(kept(kept_nodes_.size() - 1, everything), gradients_, stream);

  std::vector<Tensor> terms;
  for (size_t i = 0; i < kept_nodes_.size(); i++) terms.push_back(kept(i, everything));
  const ReductionTree::Joined joined = tree_.join(kept_nodes_);
  kernels::ordered_sum({}, terms, joined.additions, stream);
  kept_nodes_ = joined.nodes;  // in the first places: only the last ones were joined
}

void OrderedReduction::reduce(int b, Communicator& communicator, Stream& stream) {
  const Range bucket = sharding_.bucket(b);
  Tensor own = gradients_.slice(bucket.begin, bucket.end);
  const Tensor sums = own;
  if (dtype_ != DType::fp32 && sharding_.virtual_workers() > 1) {
    own = sent_.tensor().slice(0, bucket.size());
    kernels::cast(own, sums, stream);
  }
  std::vector<Tensor> terms;
  for (size_t i = 0; i < kept_nodes_.size(); i++) terms.push_back(kept(i, bucket));
  terms.push_back(own);
  if (sharding_.workers() == 1) {
    if (!own_.additions.empty()) kernels::ordered_sum(sums, terms, own_.additions, stream);
    return;
  }
  kernels::ordered_sum({}, terms, own_.additions, stream);

  const int64_t count = bucket.size() / sharding_.workers();
  const auto received = [&](int round) {
    return received_.tensor()
        .slice(round, round + 1)
        .reshape({received_.tensor().cols()})
        .slice(0, bucket.size());
  };
  // A worker with fewer subtrees than another sends its last one again, which nobody reads.
  for (int round = 0; round < rounds_; round++) {
    const int place =
        own_.places[static_cast<size_t>(std::min(round, static_cast<int>(own_.places.size()) - 1))];
    communicator.all_to_all(received(round), terms[static_cast<size_t>(place)], stream);
  }
  terms.clear();
  for (int rank = 0; rank < sharding_.workers(); rank++) {
    for (int round = 0; round < pieces_[static_cast<size_t>(rank)]; round++) {
      terms.push_back(received(round).slice(rank * count, (rank + 1) * count));
    }
  }
  const Range run = sharding_.run(b, sharding_.rank());
  kernels::ordered_sum(gradients_.slice(run.begin, run.end), terms, all_.additions, stream);
}

std::vector<Tensor> OrderedReduction::buffers() const {
  std::vector<Tensor> all{sent_.tensor(), received_.tensor()};
  for (const Buffer& buffer : kept_) all.push_back(buffer.tensor());
  std::erase_if(all, [](const Tensor& tensor) { return tensor.empty(); });
  return all;
}

int64_t OrderedReduction::memory_bytes() const {
  int64_t bytes = 0;
  for (const Tensor& buffer : buffers()) bytes += buffer.size_bytes();
  return bytes;
}

}  // namespace lockstep
