#include "launch/worker_gpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lockstep::launch {
namespace {

using ::testing::HasSubstr;

std::vector<int> indices(const std::vector<GpuChoice>& dealt) {
  std::vector<int> all;
  for (const GpuChoice& choice : dealt) all.push_back(choice.index);
  return all;
}
std::vector<int> sharers(const std::vector<GpuChoice>& dealt) {
  std::vector<int> all;
  for (const GpuChoice& choice : dealt) all.push_back(choice.sharers);
  return all;
}

TEST(DealGpus, TwoHostsWhoseWorkersSeeAllOfTheirs) {
  const auto dealt = deal_gpus({{"a", "b"}, {"a", "b"}, {"c", "d"}, {"c", "d"}});
  EXPECT_EQ(indices(dealt), (std::vector{0, 1, 0, 1}));
  EXPECT_EQ(sharers(dealt), (std::vector{1, 1, 1, 1}));
}

TEST(DealGpus, WorkersThatSeeOneEach) {
  const auto dealt = deal_gpus({{"b"}, {"a"}, {"c"}});
  EXPECT_EQ(indices(dealt), (std::vector{0, 0, 0}));
  EXPECT_EQ(sharers(dealt), (std::vector{1, 1, 1}));
}

TEST(DealGpus, WorkersThatSeeTheSameInAnotherOrder) {
  EXPECT_EQ(indices(deal_gpus({{"a", "b"}, {"a", "b"}, {"b", "c", "a"}})), (std::vector{0, 1, 1}));
}

TEST(DealGpus, MoreWorkersThanGpusShareEvenly) {
  const auto dealt = deal_gpus({{"a", "b"}, {"a", "b"}, {"a", "b"}, {"a", "b"}, {"b"}});
  EXPECT_EQ(indices(dealt), (std::vector{0, 1, 0, 1, 0}));
  EXPECT_EQ(sharers(dealt), (std::vector{2, 3, 2, 3, 3}));
}

TEST(DealGpus, AWorkerThatSeesNone) {
  const auto dealt = deal_gpus({{}, {"a"}});
  EXPECT_EQ(indices(dealt), (std::vector{-1, 0}));
  EXPECT_EQ(sharers(dealt), (std::vector{1, 1}));
}

TEST(Difference, NamesTheFirstWorkerThatDiffersAndBothValues) {
  const std::vector<Trait> one{{"lockstep", "1"}, {"cuBLASLt", "13.1.0"}, {"NCCL", "2.28.9"}};
  std::vector<std::vector<Trait>> workers{one, one, one, one};
  const std::vector<std::string> hosts{"a", "a", "b", "b"};
  EXPECT_EQ(difference(workers, hosts), "");
  workers[2][1].value = workers[3][2].value = "12.8.4";
  const std::string what = difference(workers, hosts);
  EXPECT_THAT(what,
              HasSubstr("cuBLASLt is 13.1.0 for worker 0 on a, but 12.8.4 for worker 2 on b"));
  EXPECT_EQ(std::count(what.begin(), what.end(), '\n'), 1);
}

}  // namespace
}  // namespace lockstep::launch
