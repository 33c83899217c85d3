#pragma once
#include <span>

#include "core/device.h"
#include "core/tensor.h"

// Sums of a few large terms in a given order: the additions of the tree that joins the gradients of
// virtual workers (docs/determinism.md).
namespace lockstep::kernels {

// terms[to] + terms[from], kept in terms[to].
struct Addition {
  int to, from;
  friend bool operator==(const Addition&, const Addition&) = default;
};

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// For each addition in turn, elementwise:
//
//   terms[to] = round(terms[to] + terms[from])
//
// where the sum is made in fp32 and rounded to the terms' dtype. Where there is an `out`, it gets
// the last sum in fp32 instead, unrounded, and terms[to] is left; without additions, terms[0].
//
// terms: (n) each, all fp32 or all bf16; those that are added to are overwritten. out (n) fp32, or
// empty; it may be one of the terms.
void ordered_sum(const Tensor& out, std::span<const Tensor> terms,
                 std::span<const Addition> additions, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::ordered_sum) ordered_sum;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void ordered_sum(const Tensor& out, std::span<const Tensor> terms,
                        std::span<const Addition> additions, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::ordered_sum(out, terms, additions, stream);
  }
  return cpu::ordered_sum(out, terms, additions, stream);
}

}  // namespace lockstep::kernels
