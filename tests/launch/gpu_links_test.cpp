#include "launch/gpu_links.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace lockstep::launch {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// All-reduces of 8 bytes in 10 us and of 32 MiB at this rate, by two workers.
json measured(double gb_per_second) {
  const auto rate = [](int64_t size_bytes, double bytes_per_second) {
    return json{{"size_bytes", size_bytes},
                {"seconds", static_cast<double>(size_bytes) / bytes_per_second},
                {"algorithm_bytes_per_second", bytes_per_second},
                {"bus_bytes_per_second", bytes_per_second}};
  };
  return {{"rates", {rate(8, 8e5), rate(int64_t{32} << 20, gb_per_second * 1e9)}}};
}

json links(double choice, double ring, double tree) {
  return {{"workers", 2},
          {"algorithms",
           {{"choice", measured(choice)}, {"ring", measured(ring)}, {"tree", measured(tree)}}}};
}

std::vector<Finding> problems(const json& links) {
  std::vector<Finding> found;
  find_in_gpu_links(links, found);
  return found;
}

void expect_one(const json& links, const std::string& what, const std::string& mend, bool fatal) {
  const std::vector<Finding> found = problems(links);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_THAT(found[0].what, HasSubstr(what));
  EXPECT_THAT(found[0].mend, HasSubstr(mend));
  EXPECT_EQ(found[0].fatal, fatal);
}

TEST(GpuLinks, NothingIsWrongWithSoundOnes) {
  EXPECT_TRUE(problems(links(150, 150, 100)).empty());
  EXPECT_TRUE(problems(links(80, 150, 10)).empty());  // above half of the ring's
  EXPECT_TRUE(problems(json()).empty());
  EXPECT_TRUE(problems({{"workers", 1}, {"obstacle", "one worker"}}).empty());
}

TEST(GpuLinks, AChoiceThatIsSlow) {
  expect_one(links(60, 150, 10), "slow as it chooses the algorithm: 60 GB/s bus bandwidth",
             "NCCL_ALGO=Ring", false);
  // At 8 bytes it is a matter of latency.
  json small = links(150, 150, 150);
  small["algorithms"]["choice"]["rates"][0]["bus_bytes_per_second"] = 1e5;
  EXPECT_TRUE(problems(small).empty());
}

TEST(GpuLinks, ANetworkThatIsSlow) {
  expect_one(links(0.09, 0.09, 0.05), "between the GPUs is slow: 0.09 GB/s", "NCCL_SOCKET_IFNAME",
             false);
}

TEST(GpuLinks, AnAlgorithmThatDoesNotWork) {
  json without_tree = links(150, 150, 150);
  without_tree["algorithms"]["tree"] = {{"rates", json::array()}, {"failure", "refused"}};
  expect_one(without_tree, "by tree does not work: refused", "NCCL_ALGO is not Tree", false);
  const json nothing = {
      {"workers", 2},
      {"algorithms", {{"choice", {{"rates", json::array()}, {"failure", "refused"}}}}}};
  expect_one(nothing, "NCCL does not work between the GPUs: refused", "NCCL_DEBUG=INFO", true);
}

TEST(GpuLinks, ATable) {
  json without_tree = links(150, 0.5, 1);
  without_tree["algorithms"]["tree"] = {{"rates", json::array()}, {"failure", "refused"}};
  without_tree["algorithms"]["ring"]["rates"].back()["seconds"] = 2.0;
  EXPECT_EQ(
      gpu_links_text(without_tree),
      "NCCL's all-reduce over 2 GPUs, rates in GB/s\n"
      "                NCCL's choice                 ring                          tree\n"
      "                us          algbw    busbw    us          algbw    busbw    us          "
      "algbw    busbw\n"
      "  8 bytes       10.0        0.00     0.00     10.0        0.00     0.00\n"
      "  32.0 MiB      223.7       150.00   150.00   2000000.0   0.50     0.50\n");
  EXPECT_EQ(gpu_links_text({{"workers", 1}, {"obstacle", "one worker alone"}}),
            "NCCL's all-reduce\n  not measured  one worker alone\n");
  EXPECT_EQ(gpu_links_text(json()), "");
}

}  // namespace
}  // namespace lockstep::launch
