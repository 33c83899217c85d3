#pragma once
#include "core/dtype.h"
#include "kernels/cpu/scratch.h"

// Matrix products of oneDNN, each on the calling thread alone: oneDNN's own threads would make the
// order of its sums depend on their number.
namespace lockstep::kernels::cpu {

// C = A B (+ C) (+ bias). A is (m, k), B (k, n), C (m, n) fp32, as are sums and the bias (n), which
// each row of C gets. Each is a row-major matrix with `stride` elements from row to row, or the
// transpose of one. Equal products (this
// struct, not the operands) give equal bits for equal operands; a product with another m may not:
// oneDNN chooses its method by the sizes.
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  bool a_transposed = false, b_transposed = false;
  bool b_packed = false;  // B is as pack_for() left it
  bool accumulate = false;
  bool add_bias = false;
  DType inputs = DType::fp32;  // of A and B
  friend bool operator==(const Gemm&, const Gemm&) = default;
};

// Throws DeviceError when oneDNN refuses, which it does for bf16 and fp16 unless
// has_fast_product(inputs).
void gemm(const Gemm& product, const void* a, const void* b, float* c, const float* bias = nullptr);

// B in the order that oneDNN reads it fastest, in `scratch` until its next use: worth its time
// where B is multiplied more than once. `b` is as b_stride and b_transposed say.
const void* pack_for(const Gemm& product, const void* b, Scratch& scratch);

}  // namespace lockstep::kernels::cpu
