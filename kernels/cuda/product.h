#pragma once
#include "core/device.h"
#include "core/tensor.h"

// Matrix products on the device, by cuBLASLt: what the kernels of matmul.h and classifier.h share.
namespace lockstep::kernels::cuda {

// A row-major matrix in device memory, whose rows begin `stride` elements apart.
struct Matrix {
  void* data;
  DType dtype;
  int64_t rows, cols, stride;
};
inline Matrix matrix(const Tensor& x) {
  return {x.data(), x.dtype(), x.rows(), x.cols(), x.cols()};
}

struct Operand {
  Matrix matrix;
  bool transposed = false;
  int64_t rows() const { return transposed ? matrix.cols : matrix.rows; }
  int64_t cols() const { return transposed ? matrix.rows : matrix.cols; }
};
inline Operand transposed(const Matrix& x) { return {x, true}; }

enum class Into { overwrite, add };

// out (N, M) = or += a (N, K) b (K, M) + bias (M) of every row. a and b share one dtype; out has
// the same or fp32; sums are made in fp32. bias may be empty; else it has the dtype of all others.
// The same shapes, dtypes and alignments (up to 16 bytes) give the same bits.
// Throws DeviceError when the library has no algorithm for the problem.
void product(const Matrix& out, const Operand& a, const Operand& b, const Tensor& bias, Into into,
             Stream& stream);

}  // namespace lockstep::kernels::cuda
