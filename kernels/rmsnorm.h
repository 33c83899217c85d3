#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/residual_sum.h"

// Root-mean-square normalisation of each row (Zhang & Sennrich, 2019), as in Llama.
//
//   inv_rms[n] = 1 / sqrt(mean_c x[n,c]^2 + epsilon)
//   y[n,c]     = x[n,c] * inv_rms[n] * gain[c]
//
// N rows (tokens, B*T) of C channels. x, y, gain, dx and dy share one dtype; inv_rms and dgain are
// fp32. Sums are made in fp32 in an order that depends on N and C alone; a row's result does not
// depend on the other rows.
namespace lockstep::kernels::cpu {

// Writes y (N, C) and inv_rms (N), and the residual's sum; y may be x, but not the sum.
void rmsnorm_forward(const Tensor& y, const Tensor& inv_rms, const Tensor& x,
                     const ResidualSum& residual, const Tensor& gain, float epsilon,
                     Stream& stream);

// Adds to dx (N, C) and dgain (C); reads inv_rms as forward left it.
//
//   g = dy * gain
//   dx    += inv_rms * (g - x * inv_rms^2 * mean_c (g * x))
//   dgain += sum_n dy * x * inv_rms
void rmsnorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dy, const Tensor& x,
                      const Tensor& gain, const Tensor& inv_rms, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::rmsnorm_forward) rmsnorm_forward;
decltype(cpu::rmsnorm_backward) rmsnorm_backward;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void rmsnorm_forward(const Tensor& y, const Tensor& inv_rms, const Tensor& x,
                            const ResidualSum& residual, const Tensor& gain, float epsilon,
                            Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::rmsnorm_forward(y, inv_rms, x, residual, gain, epsilon, stream);
  }
  return cpu::rmsnorm_forward(y, inv_rms, x, residual, gain, epsilon, stream);
}

inline void rmsnorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dy,
                             const Tensor& x, const Tensor& gain, const Tensor& inv_rms,
                             Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::rmsnorm_backward(dx, dgain, dy, x, gain, inv_rms, stream);
  }
  return cpu::rmsnorm_backward(dx, dgain, dy, x, gain, inv_rms, stream);
}

}  // namespace lockstep::kernels
