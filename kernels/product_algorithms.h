#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "core/device.h"

// Which algorithms the matrix products of this process take on its GPU. cuBLASLt's heuristic names
// one when a problem is met for the first time, and every later call takes the same. A process that
// goes on with the work of another has the same bits if it has the same algorithms.
namespace lockstep::kernels {

struct ProductAlgorithms {
  std::string library, gpu;  // that they are of: "cuBLASLt 13.0.2", "NVIDIA H100 80GB HBM3"
  // By problem: types, shape, strides, alignment and what is fused. The algorithm is the library's
  // own description, in hexadecimal, which is good for its own version alone; empty: it has none
  // with that epilogue, and kernels of ours do the rest.
  std::map<std::string, std::string> by_problem;
  int64_t num_refused = 0;  // of those given to reuse_product_algorithms, by the library
};

namespace cuda {
ProductAlgorithms product_algorithms();
void reuse_product_algorithms(const std::map<std::string, std::string>& by_problem);
}  // namespace cuda

// Those chosen so far and those given; nothing in a build without CUDA.
inline ProductAlgorithms product_algorithms() {
  if constexpr (kCudaIsBuilt) return cuda::product_algorithms();
  return {};
}

// Forgets all that was chosen. From here on problems take the algorithms of by_problem, which this
// version of the library has described for such a GPU; a problem that is not there, or whose
// algorithm the library refuses, gets a new one.
inline void reuse_product_algorithms(const std::map<std::string, std::string>& by_problem) {
  if constexpr (kCudaIsBuilt) cuda::reuse_product_algorithms(by_problem);
}

}  // namespace lockstep::kernels
