#include "comm/nccl_rates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/comm/world.h"

// On the emulated device, with a GPU that all workers share.
namespace lockstep {
namespace {

using ::testing::HasSubstr;

class NcclRates : public ::testing::Test {
 protected:
  void SetUp() override {
    if (world().size() == 1) GTEST_SKIP() << "one worker reduces with nobody";
  }
  void TearDown() override {
    for (const char* name :
         {"NCCL_ALGO", "LOCKSTEP_EMULATION_NCCL_ALGORITHMS", "LOCKSTEP_EMULATION_NCCL_FAIL"}) {
      unsetenv(name);
    }
    world().barrier();
  }
};

TEST_F(NcclRates, CountsAsNcclTestsDo) {
  const AllReduceRates found = measure_nccl_all_reduce(*session, "");
  EXPECT_EQ(found.failure, "");
  ASSERT_GE(found.rates.size(), 3u);
  EXPECT_EQ(found.rates.front().size_bytes, 8);
  const double n = world().size();
  int64_t previous = 0;
  for (const AllReduceRate& rate : found.rates) {
    EXPECT_GT(rate.size_bytes, previous);
    previous = rate.size_bytes;
    EXPECT_GT(rate.seconds, 0);
    const double algbw = static_cast<double>(rate.size_bytes) / rate.seconds;
    EXPECT_DOUBLE_EQ(rate.algorithm_bytes_per_second, algbw);
    EXPECT_NEAR(rate.bus_bytes_per_second, algbw * 2 * (n - 1) / n, 1e-9 * algbw);
  }
  // The same of all workers: the slowest's.
  double least = found.rates.back().seconds, most = least;
  world().all_reduce(&least, 1, ReduceOp::min);
  world().all_reduce(&most, 1, ReduceOp::max);
  EXPECT_EQ(least, most);
}

// By the algorithm that was asked for, whatever the user's variable says, which is as before then.
TEST_F(NcclRates, MeasuresTheAlgorithmAskedFor) {
  setenv("LOCKSTEP_EMULATION_NCCL_ALGORITHMS", "Ring", 1);
  EXPECT_EQ(measure_nccl_all_reduce(*session, "Ring").failure, "");
  EXPECT_EQ(std::getenv("NCCL_ALGO"), nullptr);
  setenv("NCCL_ALGO", "Tree", 1);
  EXPECT_EQ(measure_nccl_all_reduce(*session, "Ring").failure, "");
  EXPECT_STREQ(std::getenv("NCCL_ALGO"), "Tree");
  for (const char* algorithm : {"", "Tree"}) {
    const AllReduceRates refused = measure_nccl_all_reduce(*session, algorithm);
    EXPECT_TRUE(refused.rates.empty());
    EXPECT_THAT(refused.failure, HasSubstr("NCCL failed in all-reduce"));
  }
}

// One worker's operations never end: no worker waits for longer than the deadline, and the next
// measurement works.
TEST_F(NcclRates, EndsByTheDeadline) {
  setenv("LOCKSTEP_EMULATION_NCCL_FAIL", "1:2", 1);
  const AllReduceRates found = measure_nccl_all_reduce(*session, "", 1);
  EXPECT_THAT(found.failure, HasSubstr("all-reduce"));
  EXPECT_TRUE(found.rates.empty());
  unsetenv("LOCKSTEP_EMULATION_NCCL_FAIL");
  EXPECT_EQ(measure_nccl_all_reduce(*session, "").failure, "");
}

}  // namespace
}  // namespace lockstep
