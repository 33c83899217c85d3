#pragma once
#include <cstdint>
#include <span>

// Matrix products of fp32, our own, for the small products of attention: no call into a library, no
// copy of operands that a cache holds as they lie, and bits that can be said:
//
//   c[i,j] = fma(a[i,k-1], b[k-1,j], ... fma(a[i,1], b[1,j], a[i,0] * b[0,j])) (+ c[i,j])
//
// An element's bits depend on its row of A and its column of B alone: not on m and n, nor on how
// operands lie, as long as the processor has fused multiply-adds (x86-64 since 2013; without them
// each product is rounded).
//
// Method: a tile of C stays in registers while k columns of A and rows of B go by, the innermost
// loop of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008). Blocks
// that fit the caches, and copies of what lies far apart, are the caller's.
namespace lockstep::kernels::cpu {

struct GemmFp32 {
  int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;  // (m, k): a[i * a_row + l * a_column]
  int64_t a_row = 0, a_column = 0;
  const float* b = nullptr;  // (k, n), row-major
  int64_t b_stride = 0;
  float* c = nullptr;  // (m, n), row-major
  int64_t c_stride = 0;
  bool accumulate = false;  // c is added to
};

// On the calling thread.
void gemm_fp32(const GemmFp32& product);

// The function for each instruction set that this machine has, the one that gemm_fp32 calls first.
using GemmFp32Function = void (*)(const GemmFp32&);
std::span<const GemmFp32Function> gemm_fp32_functions();

}  // namespace lockstep::kernels::cpu
