#include "comm/pair_rates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "tests/comm/world.h"

namespace lockstep {
namespace {

// The pairs of all workers, lower rank first, and what was measured of them.
std::multiset<std::pair<int, int>> all_pairs(const std::vector<int>& ranks) {
  nlohmann::json own = nlohmann::json::array();
  for (const PairRate& rate : measure_pairs(*session, ranks)) {
    EXPECT_GT(rate.latency_s, 0);
    EXPECT_LT(rate.latency_s, 10);
    EXPECT_GT(rate.bytes_per_second, 1e3);
    EXPECT_LT(rate.bytes_per_second, 1e13);
    own.push_back({session->rank(), rate.peer});
  }
  std::multiset<std::pair<int, int>> all;
  for (const std::string& text : world().gather(own.dump())) {
    for (const auto& pair : nlohmann::json::parse(text)) all.emplace(pair[0], pair[1]);
  }
  return all;
}

std::multiset<std::pair<int, int>> every_two_of(const std::vector<int>& ranks) {
  std::multiset<std::pair<int, int>> pairs;
  for (size_t i = 0; i < ranks.size(); i++) {
    for (size_t j = i + 1; j < ranks.size(); j++) pairs.emplace(ranks[i], ranks[j]);
  }
  return pairs;
}

TEST(PairRates, MeasuresEveryTwoWorkersOnce) {
  std::vector<int> ranks(static_cast<size_t>(world().size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  const auto found = all_pairs(ranks);
  if (session->rank() == 0) {
    EXPECT_EQ(found, every_two_of(ranks));
  }
}

TEST(PairRates, LeavesOthersOut) {
  std::vector<int> ranks;
  for (int rank = 0; rank < world().size(); rank += 2) ranks.push_back(rank);
  const auto found = all_pairs(ranks);
  if (session->rank() == 0) {
    EXPECT_EQ(found, every_two_of(ranks));
  }
}

}  // namespace
}  // namespace lockstep
