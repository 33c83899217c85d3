#include "comm/reduction_tree.h"

#include "core/check.h"

namespace lockstep {

ReductionTree::ReductionTree(int leaves) : leaves_(leaves) {
  CHECK(leaves >= 1 && leaves <= 1 << 24, "{} leaves", leaves);
}

// As high up as the same leaves have a name.
TreeNode ReductionTree::promoted(TreeNode node) const {
  while (nodes_at(node.level) > 1 && node.index % 2 == 0 &&
         node.index == nodes_at(node.level) - 1) {
    node = {node.level + 1, node.index / 2};
  }
  return node;
}

ReductionTree::Joined ReductionTree::join(const std::vector<TreeNode>& nodes) const {
  Joined joined;
  for (size_t i = 0; i < nodes.size(); i++) {
    joined.nodes.push_back(nodes[i]);
    joined.places.push_back(static_cast<int>(i));
    while (joined.nodes.size() >= 2) {
      const TreeNode left = *(joined.nodes.end() - 2), right = joined.nodes.back();
      if (left.level != right.level || left.index % 2 != 0 || right.index != left.index + 1) break;
      joined.additions.push_back({*(joined.places.end() - 2), joined.places.back()});
      joined.nodes.pop_back();
      joined.places.pop_back();
      joined.nodes.back() = promoted({left.level + 1, left.index / 2});
    }
  }
  return joined;
}

ReductionTree::Joined ReductionTree::join_leaves(int begin, int end) const {
  CHECK(0 <= begin && begin <= end && end <= leaves_);
  std::vector<TreeNode> leaves;
  for (int i = begin; i < end; i++) leaves.push_back(leaf(i));
  return join(leaves);
}

}  // namespace lockstep
