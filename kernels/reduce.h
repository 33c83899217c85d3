#pragma once
#include "core/device.h"
#include "core/tensor.h"

// Reductions and casts over flat runs of values.
namespace lockstep::kernels {

inline constexpr int64_t kReduceBlock = 1 << 16;  // elements a block: fixes the order of sums
constexpr int64_t reduce_blocks(int64_t n) { return (n + kReduceBlock - 1) / kReduceBlock; }
}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// sum_i x[i]^2 of fp32 x, in float64: blocks of kReduceBlock, each summed in a fixed order, joined
// in one fixed binary tree. Not finite exactly when some x[i] is not.
double sum_of_squares(const Tensor& x, Stream& stream);

// sum_i x[i] of fp32 x, in float64, in the same order.
double sum(const Tensor& x, Stream& stream);

// out = x, rounded to out's dtype; any two floating-point types of one size.
void cast(const Tensor& out, const Tensor& x, Stream& stream);

// out = 0.
void set_zero(const Tensor& out, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::sum_of_squares) sum_of_squares;
decltype(cpu::sum) sum;
decltype(cpu::cast) cast;
decltype(cpu::set_zero) set_zero;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline double sum_of_squares(const Tensor& x, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::sum_of_squares(x, stream);
  }
  return cpu::sum_of_squares(x, stream);
}

inline double sum(const Tensor& x, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::sum(x, stream);
  }
  return cpu::sum(x, stream);
}

inline void cast(const Tensor& out, const Tensor& x, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::cast(out, x, stream);
  }
  return cpu::cast(out, x, stream);
}

inline void set_zero(const Tensor& out, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::set_zero(out, stream);
  }
  return cpu::set_zero(out, stream);
}

}  // namespace lockstep::kernels
