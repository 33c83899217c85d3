#pragma once
#include <cstdint>

#include "core/dtype.h"

// Copies of pieces of matrices, without gaps, for products that read them several times: what lies
// a large power of two apart shares few places of the caches.
namespace lockstep::kernels::cpu {

// out[r * cols + c] = in[r * stride + c]
template <class P, class T>
void pack(P* out, const T* in, int64_t stride, int64_t rows, int64_t cols);

// out[c * rows + r] = in[r * stride + c]
template <class P, class T>
void pack_transposed(P* out, const T* in, int64_t stride, int64_t rows, int64_t cols);

}  // namespace lockstep::kernels::cpu
