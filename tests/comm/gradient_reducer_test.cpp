#include "comm/gradient_reducer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "core/dtype.h"
#include "tests/comm/world.h"

namespace lockstep {
namespace {

constexpr int64_t kParameters = 3001;  // no multiple of anything
constexpr int kVirtualWorkers = 12;    // 1, 2, 3 and 4 workers
const std::vector<Range> kGroups{{0, 1500}, {1500, 1510}, {1510, 3000}, {3000, 3001}};
constexpr int64_t kBucketBytes = 4 * 768;  // one unit of 12 virtual workers: 4 buckets

Sharding sharding(int virtual_workers, bool replicated = false) {
  return Sharding(kParameters, {.virtual_workers = virtual_workers,
                                .rank = world().rank(),
                                .workers = world().size(),
                                .replicated = replicated,
                                .bucket_bytes = kBucketBytes});
}

// Gradient i of virtual worker v: numbers of all sizes, whose sums round.
float gradient(int step, int v, int64_t i) {
  std::minstd_rand random(static_cast<unsigned>(1 + i + 4000 * v + 100000 * step));
  random();
  return std::ldexp(static_cast<float>(random() % 20001) - 10000, static_cast<int>(random() % 24));
}

float rounded(float x, DType dtype) {
  return dtype == DType::bf16 ? to_float(from_float<bf16>(x)) : x;
}

// The tree of docs/determinism.md, written down as it is defined.
float tree_sum(std::vector<float> terms, DType dtype) {
  while (terms.size() > 1) {
    std::vector<float> sums;
    for (size_t i = 0; i + 1 < terms.size(); i += 2) {
      sums.push_back(rounded(terms[i], dtype) + rounded(terms[i + 1], dtype));
    }
    if (terms.size() % 2 == 1) sums.push_back(terms.back());
    terms = sums;
  }
  return terms[0];
}

Stream& host_stream() {
  static Stream stream;
  return stream;
}

// `place`: whose gradients virtual worker v hands in.
void run_step(
    GradientReducer& reducer, const Tensor& gradients, const Sharding& sharding, int step,
    const std::function<int(int)>& place = [](int v) { return v; }) {
  const int each = sharding.virtual_workers_each();
  for (int v = world().rank() * each; v < (world().rank() + 1) * each; v++) {
    for (int64_t i = 0; i < kParameters; i++)
      gradients.as<float>()[i] = gradient(step, place(v), i);
    for (int group = 3; group >= 0; group--) reducer.layer_ready(group);
  }
  reducer.finish();
}

// Equality: the order of every addition is given.
TEST(GradientReducer, SumsAlongTheTreeWhateverTheNumberOfWorkers) {
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    const Sharding shards = sharding(kVirtualWorkers);
    Buffer buffer(DType::fp32, {shards.padded_size()});
    GradientReducer reducer(world(), host_stream(), buffer.tensor(), shards, kGroups, dtype);
    int differs_from_plain_sum = 0;
    for (int step = 0; step < 3; step++) {
      run_step(reducer, buffer.tensor(), shards, step);
      for (const Range& range : shards.updated()) {
        for (int64_t i = range.begin; i < range.end; i++) {
          std::vector<float> terms;
          float plain = 0;
          for (int v = 0; v < kVirtualWorkers; v++) {
            terms.push_back(gradient(step, v, i));
            plain += terms.back();
          }
          const float want = tree_sum(terms, dtype);
          ASSERT_EQ(buffer.tensor().as<float>()[i], want) << name(dtype) << " " << i;
          differs_from_plain_sum += want != plain;
        }
      }
    }
    EXPECT_GT(differs_from_plain_sum, 100) << "these numbers do not tell orders apart";
  }
}

// The same numbers in another order have other bits: what the test above would see.
TEST(GradientReducer, AnotherOrderHasOtherBits) {
  const Sharding shards = sharding(kVirtualWorkers);
  Buffer buffer(DType::fp32, {shards.padded_size()});
  GradientReducer reducer(world(), host_stream(), buffer.tensor(), shards, kGroups);
  const auto sums = [&](const std::function<int(int)>& place) {
    run_step(reducer, buffer.tensor(), shards, 0, place);
    std::vector<float> own;
    for (const Range& range : shards.updated()) {
      const float* values = buffer.tensor().as<float>();
      own.insert(own.end(), values + range.begin, values + range.end);
    }
    return own;
  };
  const auto same = [](int v) { return v; };
  const std::vector<float> first = sums(same);
  EXPECT_EQ(sums(same), first);
  EXPECT_NE(sums([](int v) { return (v + 1) % kVirtualWorkers; }), first);
}

// As many virtual workers as workers, also where the tree is not a full one.
TEST(GradientReducer, SumsOneVirtualWorkerEach) {
  const Sharding shards = sharding(world().size());
  Buffer buffer(DType::fp32, {shards.padded_size()});
  GradientReducer reducer(world(), host_stream(), buffer.tensor(), shards, kGroups);
  run_step(reducer, buffer.tensor(), shards, 0);
  for (const Range& range : shards.updated()) {
    for (int64_t i = range.begin; i < range.end; i++) {
      std::vector<float> terms;
      for (int v = 0; v < world().size(); v++) terms.push_back(gradient(0, v, i));
      ASSERT_EQ(buffer.tensor().as<float>()[i], tree_sum(terms, DType::fp32)) << i;
    }
  }
}

// The library's order: everywhere the same, and small integers add up exactly.
TEST(GradientReducer, AllReduceSumsEverywhere) {
  const Sharding shards = sharding(world().size(), /*replicated=*/true);
  Buffer buffer(DType::fp32, {shards.padded_size()});
  GradientReducer reducer(world(), host_stream(), buffer.tensor(), shards, kGroups);
  float* gradients = buffer.tensor().as<float>();
  const int size = world().size();
  for (int step = 0; step < 20; step++) {
    for (int i = 0; i < kParameters; i++) {
      gradients[i] = static_cast<float>(i + step + world().rank());
    }
    for (int group = 3; group >= 0; group--) reducer.layer_ready(group);
    reducer.finish();
    for (int i = 0; i < kParameters; i++) {
      ASSERT_EQ(gradients[i], (i + step) * size + size * (size - 1) / 2) << i;
    }
  }
}

// Backward still writes the gradients of the groups that are not ready, so no bucket that reaches
// into them may be touched, and those that are complete must not wait for finish().
TEST(GradientReducer, ReducesWhatIsReadyAndNothingElse) {
  if (world().size() == 1) GTEST_SKIP() << "there is nothing to reduce";
  for (const bool replicated : {false, true}) {
    const Sharding shards = sharding(world().size(), replicated);
    Buffer buffer(DType::fp32, {shards.padded_size()});
    auto* gradients = reinterpret_cast<std::atomic<float>*>(buffer.tensor().as<float>());
    for (int i = 0; i < kParameters; i++) gradients[i] = 1;
    GradientReducer reducer(world(), host_stream(), buffer.tensor(), shards, kGroups);
    const float all = static_cast<float>(world().size());
    const auto own = [&](int bucket) { return shards.run(bucket, world().rank()); };
    int complete = 0;  // buckets within groups 2 and 3
    while (shards.bucket(complete).begin >= kGroups[2].begin) complete++;
    ASSERT_GT(complete, 0);
    reducer.layer_ready(3);
    reducer.layer_ready(2);
    const int64_t last = own(complete - 1).begin;
    for (int tries = 0; gradients[last] != all && tries < 5000; tries++) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ASSERT_EQ(gradients[last], all);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (int64_t i = 0; i < shards.bucket(complete).end; i++) ASSERT_EQ(gradients[i], 1) << i;
    reducer.layer_ready(1);
    reducer.layer_ready(0);
    reducer.finish();
    for (const Range& range : shards.updated()) {
      for (int64_t i = range.begin; i < range.end; i++) ASSERT_EQ(gradients[i], all) << i;
    }
  }
}

TEST(GradientReducer, RefusesGroupsOutOfOrderAndAnUnfinishedBackward) {
  const Sharding shards = sharding(world().size());
  Buffer buffer(DType::fp32, {shards.padded_size()});
  GradientReducer reducer(world(), host_stream(), buffer.tensor(), shards, kGroups);
  EXPECT_THROW(reducer.layer_ready(2), std::logic_error);
  reducer.layer_ready(3);
  EXPECT_THROW(reducer.finish(), std::logic_error);
}

TEST(GradientReducer, LeavesAHalfDoneStepWithoutWaitingForPeers) {
  const Sharding shards = sharding(world().size());
  Buffer buffer(DType::fp32, {shards.padded_size()});
  {
    GradientReducer reducer(world(), host_stream(), buffer.tensor(), shards, kGroups);
    if (world().rank() == 0) {
      for (int group = 3; group >= 0; group--) reducer.layer_ready(group);
    }
  }
  world().barrier();
}

// Every worker gets what the others own.
TEST(GatherShards, GivesEveryWorkerEverything) {
  const Sharding shards = sharding(kVirtualWorkers);
  Buffer buffer(DType::bf16, {shards.padded_size()});
  bf16* values = buffer.tensor().as<bf16>();
  for (const Range& range : shards.shard()) {
    for (int64_t i = range.begin; i < range.end; i++) {
      values[i] = from_float<bf16>(static_cast<float>(i % 251));
    }
  }
  Stream stream;
  gather_shards(shards, buffer.tensor(), world(), stream);
  for (int64_t i = 0; i < kParameters; i++) ASSERT_EQ(to_float(values[i]), i % 251) << i;
}

}  // namespace
}  // namespace lockstep
