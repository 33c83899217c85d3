#include "comm/gradient_reducer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/comm/world.h"

namespace lockstep {
namespace {

const std::vector<std::pair<int64_t, int64_t>> kGroups{
    {0, 400}, {400, 410}, {410, 700}, {700, 701}};
constexpr int64_t kBucketBytes = 4 * 64;

// Small integers: sums are exact.
TEST(GradientReducer, SumsEveryGradientOfEveryStep) {
  Buffer buffer(DType::fp32, {701});
  float* gradients = buffer.tensor().as<float>();
  GradientReducer reducer(world(), buffer.tensor(), kGroups, kBucketBytes);
  const int size = world().size();
  EXPECT_EQ(reducer.num_buckets(), size == 1 ? 0 : 11);
  for (int step = 0; step < 20; step++) {
    for (int i = 0; i < 701; i++) gradients[i] = static_cast<float>(i + step + world().rank());
    for (int group = 3; group >= 0; group--) reducer.layer_ready(group);
    const GradientSlice slice = reducer.finish();
    EXPECT_EQ(slice.begin, 0);
    EXPECT_EQ(slice.end, 701);
    for (int i = 0; i < 701; i++) {
      ASSERT_EQ(slice.gradients.as<float>()[i], (i + step) * size + size * (size - 1) / 2) << i;
    }
  }
}

// Backward still writes the gradients of the groups that are not ready, so no bucket that reaches
// into them may be touched, and those that are complete must not wait for finish().
TEST(GradientReducer, ReducesWhatIsReadyAndNothingElse) {
  if (world().size() == 1) GTEST_SKIP() << "there is nothing to reduce";
  Buffer buffer(DType::fp32, {701});
  auto* gradients = reinterpret_cast<std::atomic<float>*>(buffer.tensor().as<float>());
  for (int i = 0; i < 701; i++) gradients[i] = 1;
  GradientReducer reducer(world(), buffer.tensor(), kGroups, kBucketBytes);
  const float all = static_cast<float>(world().size());
  reducer.layer_ready(3);
  reducer.layer_ready(2);
  // Buckets [637, 701), [573, 637), [509, 573), [445, 509) are complete; [381, 445) is not.
  for (int tries = 0; gradients[445] != all && tries < 5000; tries++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (int i = 445; i < 701; i++) ASSERT_EQ(gradients[i], all) << i;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (int i = 0; i < 445; i++) ASSERT_EQ(gradients[i], 1) << i;
  reducer.layer_ready(1);
  reducer.layer_ready(0);
  reducer.finish();
  for (int i = 0; i < 701; i++) ASSERT_EQ(gradients[i], all) << i;
}

TEST(GradientReducer, RefusesGroupsOutOfOrderAndAnUnfinishedBackward) {
  Buffer buffer(DType::fp32, {701});
  GradientReducer reducer(world(), buffer.tensor(), kGroups, kBucketBytes);
  EXPECT_THROW(reducer.layer_ready(2), std::logic_error);
  reducer.layer_ready(3);
  EXPECT_THROW(reducer.finish(), std::logic_error);
}

TEST(GradientReducer, LeavesAHalfDoneStepWithoutWaitingForPeers) {
  Buffer buffer(DType::fp32, {701});
  {
    GradientReducer reducer(world(), buffer.tensor(), kGroups, kBucketBytes);
    if (world().rank() == 0) {
      for (int group = 3; group >= 0; group--) reducer.layer_ready(group);
    }
  }
  world().barrier();
}

}  // namespace
}  // namespace lockstep
