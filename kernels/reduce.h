#pragma once
#include "core/device.h"
#include "core/range.h"
#include "core/tensor.h"

// Reductions and casts over flat runs of values.
namespace lockstep::kernels {

inline constexpr int64_t kReduceBlock = 1 << 16;  // elements a block: fixes the order of sums
constexpr int64_t reduce_blocks(int64_t n) { return (n + kReduceBlock - 1) / kReduceBlock; }
}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// *total += sum_i x[i] of fp32 x, in float64: blocks of kReduceBlock, each summed in a fixed order,
// joined in one fixed binary tree. Not finite exactly when some x[i] is not. `total` is in the
// memory of the device that computes.
void add_sum(double* total, const Tensor& x, Stream& stream);

// The same of squares, for `count` ranges of x at once:
//   totals[r] += sum of x[i]^2 over i in ranges[r]
// totals and ranges are in the memory of the device that computes; a range has at most `largest`
// elements.
void add_sums_of_squares(double* totals, const Tensor& x, const Range* ranges, int64_t count,
                         int64_t largest, Stream& stream);

// out = x, rounded to out's dtype; any two floating-point types of one size.
void cast(const Tensor& out, const Tensor& x, Stream& stream);

// out = 0.
void set_zero(const Tensor& out, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::add_sum) add_sum;
decltype(cpu::add_sums_of_squares) add_sums_of_squares;
decltype(cpu::cast) cast;
decltype(cpu::set_zero) set_zero;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void add_sum(double* total, const Tensor& x, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::add_sum(total, x, stream);
  }
  return cpu::add_sum(total, x, stream);
}

inline void add_sums_of_squares(double* totals, const Tensor& x, const Range* ranges, int64_t count,
                                int64_t largest, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::add_sums_of_squares(totals, x, ranges, count, largest, stream);
  }
  return cpu::add_sums_of_squares(totals, x, ranges, count, largest, stream);
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
