#pragma once
#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "kernels/quantized_matmul.h"

// How a matrix of weights (O, I) fp32 becomes one of 8 or 4 bits. Both write all of `out`, which
// has its shape; throw DataError on a weight that is not finite. The same bits for any number of
// threads.
namespace lockstep {

// Each weight to the nearest of the numbers that its group has: 2^bits of them, evenly spaced, from
// the smallest weight of the group (or 0) to the largest (or 0), 0 among them.
void round_to_nearest(const kernels::QuantizedMatrix& out, const Tensor& weight);

// The same numbers, chosen so that the outputs change little for the inputs that the layer sees:
// GPTQ (Frantar et al., 2022). A row w becomes q such that e = w - q makes e^T H e small, where
// `hessian` H (I, I) is the sum of x x^T over those inputs x. From left to right, each weight is
// rounded to the number nearest to where the errors before it are best made up for:
//
//   H + damping = C^T C, C lower triangular:   e^T H e = sum_i (sum_{j <= i} C[i,j] e[j])^2
//   q[i] = nearest(w[i] + sum_{j < i} C[i,j] e[j] / C[i,i])
void round_for_inputs(const kernels::QuantizedMatrix& out, const Tensor& weight,
                      std::vector<double> hessian);

}  // namespace lockstep
