#include "launch/allocation.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace lockstep::launch {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;
constexpr int64_t kGiB = int64_t{1} << 30;

// The first worker of host n<rank>, with nothing wrong.
json worker(int rank) {
  return {{"rank", rank},
          {"host", fmt::format("n{}", rank)},
          {"threads", 4},
          {"fp32_flops", 4e11},
          {"cuda", json::object()},
          {"clock_s", 1000.0 + 0.001 * rank},
          {"interfaces",
           {{{"name", "eth0"},
             {"address", fmt::format("10.0.0.{}", rank)},
             {"subnet", "10.0.0.0/24"}}}},
          {"disk_folder", "/data"},
          {"disk_free_bytes", 100 * kGiB},
          {"links", json::array()}};
}

// Hosts with links between every two of them.
json hosts(int count) {
  json workers = json::array();
  for (int rank = 0; rank < count; rank++) {
    workers.push_back(worker(rank));
    for (int peer = rank + 1; peer < count; peer++) {
      workers[rank]["links"].push_back(
          {{"peer", peer}, {"latency_s", 20e-6}, {"bytes_per_second", 1e9}});
    }
  }
  return workers;
}

std::vector<Finding> problems(const json& workers) {
  std::vector<Finding> findings;
  find_in_allocation(workers, findings);
  return findings;
}

void expect_one(const json& workers, const std::string& what, bool fatal) {
  const std::vector<Finding> found = problems(workers);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_THAT(found[0].what, HasSubstr(what));
  EXPECT_EQ(found[0].fatal, fatal);
}

TEST(Allocation, NothingIsWrongWithSoundHosts) {
  for (const int count : {1, 2, 4}) EXPECT_TRUE(problems(hosts(count)).empty());
}

TEST(Allocation, ALinkThatIsSlowerThanTheOthers) {
  json workers = hosts(4);
  workers[1]["links"][1]["bytes_per_second"] = 0.49e9;  // n1 to n3
  expect_one(workers, "the link between worker 1 on n1 and worker 3 on n3 is slow", false);
  const std::string table = links_text(workers);
  EXPECT_THAT(table, HasSubstr("slow\n"));
  EXPECT_THAT(table.substr(0, table.find("n1            n3")), Not(HasSubstr("slow")));
  workers[1]["links"][1]["bytes_per_second"] = 0.51e9;
  EXPECT_TRUE(problems(workers).empty());
  workers[1]["links"][1]["latency_s"] = 1.1e-3;
  expect_one(workers, "n3 is slow", false);
}

// With two hosts there is no other to compare with.
TEST(Allocation, ANetworkThatIsTooSlowForTraining) {
  json workers = hosts(2);
  workers[0]["links"][0]["bytes_per_second"] = 99e6;
  expect_one(workers, "worker 0 on n0 and worker 1 on n1 is slow", false);
}

TEST(Allocation, WorkersOfOneHostMayDifferMore) {
  json workers = hosts(3);
  for (json& w : workers) w["host"] = "n0";
  for (json& w : workers) w["interfaces"] = json::array();
  workers[0]["links"][0]["bytes_per_second"] = 0.3e9;
  EXPECT_TRUE(problems(workers).empty());
  workers[0]["links"][0]["bytes_per_second"] = 0.2e9;
  expect_one(workers, "worker 0 on n0 and worker 1 on n0", false);
}

TEST(Allocation, ABridgeThatLeadsNowhere) {
  json workers = hosts(2);
  for (json& w : workers) {
    w["interfaces"].push_back(
        {{"name", "docker0"}, {"address", "172.17.0.1"}, {"subnet", "172.17.0.0/16"}});
  }
  expect_one(workers, "docker0 has the address 172.17.0.1 on 2 hosts", false);
  EXPECT_THAT(problems(workers)[0].mend, HasSubstr("btl_tcp_if_exclude lo,docker0"));
  EXPECT_EQ(interfaces_text(workers[0]), "eth0 10.0.0.0, docker0 172.17.0.1");
}

TEST(Allocation, AStraggler) {
  json workers = hosts(4);
  workers[2]["fp32_flops"] = 3.1e11;
  expect_one(workers, "worker 2 on n2 is slow", false);
  workers[2]["threads"] = 3;  // fewer cores, of the same speed
  EXPECT_TRUE(problems(workers).empty());
}

TEST(Allocation, ASlowGpu) {
  json workers = hosts(3);
  for (json& w : workers) w["cuda"]["bf16_flops"] = 7e14;
  EXPECT_TRUE(problems(workers).empty());
  workers[1]["cuda"]["bf16_flops"] = 4e14;
  expect_one(workers, "worker 1 on n1 is slow: GPU products", false);
}

TEST(Allocation, ClocksThatDiffer) {
  json workers = hosts(3);
  workers[1]["clock_s"] = 998.0;
  expect_one(workers, "the clock of n1 is 2.0 s behind that of n0", false);
}

TEST(Allocation, AnotherDatasetOrNone) {
  json workers = hosts(3);
  for (json& w : workers) w["dataset"] = "a";
  EXPECT_TRUE(problems(workers).empty());
  workers[2]["dataset"] = "b";
  expect_one(workers, "n0 and n2 have different datasets", true);
  workers[2].erase("dataset");
  workers[2]["dataset_error"] = "/data/x: no such folder";
  expect_one(workers, "n2: /data/x: no such folder", true);
}

TEST(Allocation, ARunFolderThatIsNotShared) {
  json workers = hosts(2);
  workers[0]["shares_folder"] = true;
  workers[1]["shares_folder"] = false;
  expect_one(workers, "n1 does not see what n0 writes in /data", true);
}

TEST(Allocation, DisksOfEachHost) {
  json workers = hosts(2);
  workers[1]["disk_free_bytes"] = kGiB;
  expect_one(workers, "n1: only 1.0 GiB are free in /data", false);
  workers[1]["disk_error"] = "/data: cannot be written: No space left on device";
  expect_one(workers, "n1: /data: cannot be written", true);
}

}  // namespace
}  // namespace lockstep::launch
