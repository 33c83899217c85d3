#pragma once
#include "core/tensor.h"

namespace lockstep::kernels {

// What a norm adds to its input x first, in the same pass over memory: it writes
//
//   sum[n,c] = x[n,c] + added[n,c]
//
// rounded to their dtype, and takes the sum in the place of x. Both (N, C); sum may be x or added.
// Empty: nothing is added.
struct ResidualSum {
  Tensor added, sum;

  bool fits(const Tensor& x) const {
    return added.empty() ? sum.empty() : added.size() == x.size() && sum.size() == x.size();
  }
};

}  // namespace lockstep::kernels
