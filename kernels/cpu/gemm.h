#pragma once
#include "core/tensor.h"

// Matrix products of oneDNN, each on the calling thread alone: oneDNN's own threads would make the
// order of its sums depend on their number.
namespace lockstep::kernels::cpu {

// C = A B, or C += A B; then + bias in each row. A is (m, k), B (k, n), C (m, n). Each is a
// row-major matrix with `stride` elements from row to row, or the transpose of one. Equal products
// (this struct, not the operands) give equal bits for equal operands; a product with another m may
// not: oneDNN chooses its method by the sizes.
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  bool a_transposed = false, b_transposed = false;
  bool accumulate = false;
  bool bias = false;           // bias (n) of inputs' type
  DType inputs = DType::fp32;  // of A and B
  DType output = DType::fp32;  // of C; sums are fp32
  friend bool operator==(const Gemm&, const Gemm&) = default;
};

// Throws DeviceError when oneDNN refuses, which it does for bf16 and fp16 unless
// has_fast_product(inputs).
void gemm(const Gemm& product, const void* a, const void* b, void* c, const void* bias = nullptr);

}  // namespace lockstep::kernels::cpu
