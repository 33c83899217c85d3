#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/residual_sum.h"

// Layer normalisation of each row (Ba, Kiros & Hinton, 2016).
//
//   mean[n] = mean_c x[n,c],  rstd[n] = 1 / sqrt(mean_c (x[n,c] - mean[n])^2 + epsilon)
//   y[n,c]  = (x[n,c] - mean[n]) * rstd[n] * gain[c] + bias[c]
//
// N rows (tokens, B*T) of C channels. x, y, gain, bias and dx, dy share one dtype; mean, rstd,
// dgain and dbias are fp32. Sums are made in fp32 in an order that depends on N and C alone; a
// row's result does not depend on the other rows.
namespace lockstep::kernels::cpu {

// Writes y (N, C), mean (N) and rstd (N), and the residual's sum; y may be x, but not the sum.
void layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                       const ResidualSum& residual, const Tensor& gain, const Tensor& bias,
                       float epsilon, Stream& stream);

// Adds to dx (N, C), dgain (C) and dbias (C); reads mean and rstd as forward left them.
//
//   g = dy * gain,  h = (x - mean) * rstd
//   dx    += rstd * (g - mean_c g - h * mean_c (g * h))
//   dgain += sum_n dy * h,  dbias += sum_n dy
void layernorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias,
                        const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                        const Tensor& rstd, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::layernorm_forward) layernorm_forward;
decltype(cpu::layernorm_backward) layernorm_backward;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd,
                              const Tensor& x, const ResidualSum& residual, const Tensor& gain,
                              const Tensor& bias, float epsilon, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::layernorm_forward(y, mean, rstd, x, residual, gain, bias, epsilon, stream);
  }
  return cpu::layernorm_forward(y, mean, rstd, x, residual, gain, bias, epsilon, stream);
}

inline void layernorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias,
                               const Tensor& dy, const Tensor& x, const Tensor& gain,
                               const Tensor& mean, const Tensor& rstd, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::layernorm_backward(dx, dgain, dbias, dy, x, gain, mean, rstd, stream);
  }
  return cpu::layernorm_backward(dx, dgain, dbias, dy, x, gain, mean, rstd, stream);
}

}  // namespace lockstep::kernels
