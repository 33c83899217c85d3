#include "comm/sharding.h"

#include <algorithm>

#include "comm/communicator.h"
#include "core/check.h"
#include "core/profile.h"

namespace lockstep {

Sharding::Sharding(int64_t parameters, const Options& options)
    : options_(options), parameters_(parameters) {
  CHECK(options.workers >= 1 && 0 <= options.rank && options.rank < options.workers);
  CHECK(options.virtual_workers >= 1 && options.virtual_workers % options.workers == 0,
        "{} virtual workers over {} workers", options.virtual_workers, options.workers);
  const int64_t unit = options.virtual_workers * kAlignment;
  padded_size_ = round_up(parameters, unit);
  const int64_t count = round_up(options.bucket_bytes / size_bytes(DType::fp32), unit);
  for (int64_t end = padded_size_; end > 0; end -= count) {
    buckets_.push_back({std::max<int64_t>(0, end - count), end});
  }
}

Range Sharding::run(int bucket, int rank) const {
  const Range whole = this->bucket(bucket);
  const int64_t count = whole.size() / workers();
  return {whole.begin + rank * count, whole.begin + (rank + 1) * count};
}

std::vector<Sharding::Slice> Sharding::slices() const {
  std::vector<Slice> slices;
  for (int b = 0; b < num_buckets(); b++) {
    const int64_t count = bucket(b).size() / virtual_workers();
    for (int v = rank() * virtual_workers_each(); v < (rank() + 1) * virtual_workers_each(); v++) {
      const int64_t begin = bucket(b).begin + v * count;
      slices.push_back({int64_t{b} * virtual_workers() + v, clipped({begin, begin + count})});
    }
  }
  return slices;
}

std::vector<Range> Sharding::shard() const {
  std::vector<Range> ranges;
  for (int b = num_buckets() - 1; b >= 0; b--) {
    const Range range = clipped(run(b, rank()));
    if (range.size() == 0) continue;
    if (!ranges.empty() && ranges.back().end == range.begin) {
      ranges.back().end = range.end;
    } else {
      ranges.push_back(range);
    }
  }
  return ranges;
}

std::vector<Range> Sharding::updated() const {
  return replicated() ? std::vector<Range>{{0, parameters_}} : shard();
}

Range Sharding::clipped(const Range& range) const {
  return {std::min(range.begin, parameters_), std::min(range.end, parameters_)};
}

void gather_shards(const Sharding& sharding, const Tensor& flat, Communicator& communicator,
                   Stream& stream) {
  if (sharding.replicated() || sharding.workers() == 1) return;
  CHECK(flat.size() == sharding.padded_size());
  const ProfileScope scope(Span::Kind::stage, "gather weights");
  for (int b = sharding.num_buckets() - 1; b >= 0; b--) {
    const Range bucket = sharding.bucket(b);
    communicator.set_purpose(
        fmt::format("of weights, bucket {} of {}", b + 1, sharding.num_buckets()));
    communicator.all_gather(flat.slice(bucket.begin, bucket.end), stream);
  }
}

}  // namespace lockstep
