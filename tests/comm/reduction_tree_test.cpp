#include "comm/reduction_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace lockstep {
namespace {

// The sum as an expression over leaves [begin, end), by the definition: neighbours are joined until
// one is left.
std::string definition(int leaves) {
  std::vector<std::string> terms;
  for (int i = 0; i < leaves; i++) terms.push_back(std::to_string(i));
  while (terms.size() > 1) {
    std::vector<std::string> joined;
    for (size_t i = 0; i + 1 < terms.size(); i += 2) {
      joined.push_back("(" + terms[i] + "+" + terms[i + 1] + ")");
    }
    if (terms.size() % 2 == 1) joined.push_back(terms.back());
    terms = joined;
  }
  return terms[0];
}

// Carries additions out on expressions.
void add(std::vector<std::string>& terms, const std::vector<kernels::Addition>& additions) {
  for (const auto& [to, from] : additions) terms[to] = "(" + terms[to] + "+" + terms[from] + ")";
}

TEST(ReductionTree, IsTheSameHoweverItsLeavesAreDealtToWorkers) {
  for (int leaves = 1; leaves <= 64; leaves++) {
    const ReductionTree tree(leaves);
    for (int workers = 1; workers <= leaves; workers++) {
      if (leaves % workers != 0) continue;
      const int each = leaves / workers;
      std::vector<TreeNode> nodes;
      std::vector<std::string> terms;
      for (int worker = 0; worker < workers; worker++) {
        std::vector<std::string> own;
        for (int i = worker * each; i < (worker + 1) * each; i++) own.push_back(std::to_string(i));
        const auto joined = tree.join_leaves(worker * each, (worker + 1) * each);
        add(own, joined.additions);
        for (const int place : joined.places) terms.push_back(own[place]);
        nodes.insert(nodes.end(), joined.nodes.begin(), joined.nodes.end());
      }
      const auto joined = tree.join(nodes);
      add(terms, joined.additions);
      ASSERT_THAT(joined.places, testing::ElementsAre(0));
      ASSERT_EQ(terms[0], definition(leaves)) << leaves << " over " << workers;
    }
  }
}

// What makes the ordered reduction cost no more than a ring: a power of two of virtual workers each
// is one subtree.
TEST(ReductionTree, APowerOfTwoOfLeavesEachIsOneSubtree) {
  for (int each = 1; each <= 8; each *= 2) {
    const ReductionTree tree(each * 6);
    for (int worker = 0; worker < 6; worker++) {
      EXPECT_EQ(tree.join_leaves(worker * each, (worker + 1) * each).nodes.size(), 1u);
    }
  }
  EXPECT_EQ(ReductionTree(24).join_leaves(6, 12).nodes.size(), 2u);  // [6, 8) and [8, 12)
}

}  // namespace
}  // namespace lockstep
