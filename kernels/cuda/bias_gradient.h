#pragma once
#include "core/device.h"
#include "core/tensor.h"

namespace lockstep::kernels::cuda {

// dbias[o] += sum_n dy[n,o], in fp32, in an order that depends on the shape of dy (N, O) alone.
// dbias (O) is fp32.
void add_bias_gradient(const Tensor& dbias, const Tensor& dy, Stream& stream);

}  // namespace lockstep::kernels::cuda
