#pragma once
#include <cstdint>
#include <vector>

#include "core/range.h"
#include "core/tensor.h"

namespace lockstep {

class Communicator;

// How the flat buffers of P parameters are dealt to the workers (docs/determinism.md).
//
// With zeros behind the parameters they are a multiple of V * kAlignment elements, for V virtual
// workers. They are cut into buckets from their end, which is the order that backward completes
// them in, and each bucket into V equal slices. Worker r of W owns the slices of its V / W virtual
// workers, a run of each bucket; all its runs together are its shard.
class Sharding {
 public:
  static constexpr int64_t kAlignment = 64;          // elements
  static constexpr int64_t kBucketBytes = 25 << 20;  // of fp32

  struct Options {
    int virtual_workers = 1;  // a multiple of workers
    int rank = 0, workers = 1;
    bool replicated = false;  // every worker updates everything; shards are only written by theirs
    int64_t bucket_bytes = kBucketBytes;
  };
  Sharding(int64_t parameters, const Options& options);

  int rank() const { return options_.rank; }
  int workers() const { return options_.workers; }
  int virtual_workers() const { return options_.virtual_workers; }
  int virtual_workers_each() const { return virtual_workers() / workers(); }
  bool replicated() const { return options_.replicated; }
  int64_t parameters() const { return parameters_; }    // P
  int64_t padded_size() const { return padded_size_; }  // elements of the flat buffers

  int num_buckets() const { return static_cast<int>(buckets_.size()); }
  Range bucket(int i) const { return buckets_[static_cast<size_t>(i)]; }
  Range run(int bucket, int rank) const;  // of worker `rank`

  // This worker's slices, numbered over all buckets and virtual workers; without the zeros.
  struct Slice {
    int64_t number;
    Range range;
  };
  std::vector<Slice> slices() const;
  int64_t num_slices() const { return int64_t{num_buckets()} * virtual_workers(); }

  std::vector<Range> shard() const;    // ascending, without the zeros
  std::vector<Range> updated() const;  // what this worker updates: its shard, or all

 private:
  Range clipped(const Range& range) const;

  Options options_;
  int64_t parameters_, padded_size_;
  std::vector<Range> buckets_;  // the last of the buffer first
};

// Gives every worker the shards of all. flat (padded_size): each worker has filled its own.
// Collective; does nothing where all workers update everything.
void gather_shards(const Sharding& sharding, const Tensor& flat, Communicator& communicator,
                   Stream& stream);

}  // namespace lockstep
