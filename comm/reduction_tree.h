#pragma once
#include <vector>

#include "kernels/ordered_sum.h"

// The order in which the gradients of virtual workers are summed (docs/determinism.md).
namespace lockstep {

// A subtree: the leaves [index * 2^level, (index + 1) * 2^level) that there are.
struct TreeNode {
  int level = 0, index = 0;
  friend bool operator==(const TreeNode&, const TreeNode&) = default;
};

// One binary tree over `leaves` leaves: at each level neighbours 2i and 2i + 1 are joined, and one
// that is left over goes up as it is. Aligned blocks of 2^k leaves are subtrees of it.
class ReductionTree {
 public:
  explicit ReductionTree(int leaves);
  int leaves() const { return leaves_; }

  // What is left of some subtrees after joining neighbours as long as two make a subtree.
  struct Joined {
    std::vector<TreeNode> nodes;
    std::vector<int> places;                   // of each in the list that was given
    std::vector<kernels::Addition> additions;  // that this takes, by places; the left one is `to`
  };
  // nodes: in the order of their leaves, without gaps.
  Joined join(const std::vector<TreeNode>& nodes) const;
  // The same of single leaves: their fewest whole subtrees.
  Joined join_leaves(int begin, int end) const;
  TreeNode leaf(int index) const { return promoted({0, index}); }

 private:
  TreeNode promoted(TreeNode node) const;
  int nodes_at(int level) const { return (leaves_ + (1 << level) - 1) >> level; }

  int leaves_;
};

}  // namespace lockstep
