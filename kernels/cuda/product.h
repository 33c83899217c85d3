#pragma once
#include "core/device.h"
#include "core/tensor.h"

// Matrix products on the device, by cuBLASLt: what the kernels of matmul.h and classifier.h share.
namespace lockstep::kernels::cuda {

// A row-major matrix in device memory, whose rows begin `stride` elements apart.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::fp32;
  int64_t rows = 0, cols = 0, stride = 0;
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

// What a product does beside, while its operands and results are at hand. `vector` and `aux` have
// the dtype of out: the library takes no other.
struct Epilogue {
  enum class Kind {
    none,
    bias,           // out += vector (M), of every row
    gelu,           // aux (N, M) = out + vector (M, or empty), then out = gelu_tanh(aux)
    gelu_gradient,  // out *= gelu_tanh'(aux), aux (N, M)
    row_sums,       // vector (N) = sum over K of a, which is transposed; also where out is added to
  };
  Kind kind = Kind::none;
  Tensor vector = {};
  Matrix aux = {};
};

// The same as product(), with any epilogue. False, and nothing is done, where the library cannot
// fuse that epilogue with that problem; always the same answer for the same problem.
[[nodiscard]] bool fused_product(const Matrix& out, const Operand& a, const Operand& b,
                                 const Epilogue& epilogue, Into into, Stream& stream);

}  // namespace lockstep::kernels::cuda
