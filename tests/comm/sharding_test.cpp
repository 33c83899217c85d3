#include "comm/sharding.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

Sharding make(int64_t parameters, int virtual_workers, int rank, int workers) {
  return Sharding(parameters, {.virtual_workers = virtual_workers,
                               .rank = rank,
                               .workers = workers,
                               .bucket_bytes = 4 * 1000});
}

TEST(Sharding, DealsEveryParameterOnce) {
  for (const int64_t parameters : {1, 63, 64, 1000, 7777, 100000}) {
    for (const int workers : {1, 2, 3, 4, 6, 12}) {
      std::vector<int> owners(static_cast<size_t>(parameters));
      for (int rank = 0; rank < workers; rank++) {
        int64_t before = 0;
        for (const Range& range : make(parameters, 12, rank, workers).shard()) {
          ASSERT_LE(before, range.begin);
          ASSERT_LT(range.begin, range.end);
          for (int64_t i = range.begin; i < range.end; i++) owners[static_cast<size_t>(i)]++;
          before = range.end;
        }
      }
      for (const int count : owners) ASSERT_EQ(count, 1);
    }
  }
}

// What the norm is summed over: the same pieces, under the same numbers, for any number of workers.
TEST(Sharding, SlicesDependOnVirtualWorkersAlone) {
  const int64_t parameters = 7777;
  const auto all = make(parameters, 12, 0, 1).slices();
  for (const int workers : {2, 3, 4, 6, 12}) {
    size_t found = 0;
    for (int rank = 0; rank < workers; rank++) {
      const Sharding sharding = make(parameters, 12, rank, workers);
      for (const auto& slice : sharding.slices()) {
        ASSERT_LT(slice.number, sharding.num_slices());
        const auto& same = all[static_cast<size_t>(slice.number)];
        EXPECT_EQ(same.number, slice.number);
        EXPECT_EQ(same.range, slice.range);
        found++;
      }
    }
    EXPECT_EQ(found, all.size());
  }
}

TEST(Sharding, BucketsStartAtTheEndAndDivide) {
  const Sharding sharding = make(7777, 4, 1, 2);
  EXPECT_EQ(sharding.padded_size() % (4 * Sharding::kAlignment), 0);
  EXPECT_LT(sharding.padded_size() - 7777, 4 * Sharding::kAlignment);
  int64_t end = sharding.padded_size();
  for (int b = 0; b < sharding.num_buckets(); b++) {
    EXPECT_EQ(sharding.bucket(b).end, end);
    EXPECT_EQ(sharding.bucket(b).size() % (4 * Sharding::kAlignment), 0);
    EXPECT_EQ(sharding.run(b, 0).end, sharding.run(b, 1).begin);
    EXPECT_EQ(sharding.run(b, 1).end, end);
    end = sharding.bucket(b).begin;
  }
  EXPECT_EQ(end, 0);
  EXPECT_EQ(sharding.num_buckets(), 8);  // of 1024 elements
}

}  // namespace
}  // namespace lockstep
