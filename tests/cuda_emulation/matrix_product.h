#pragma once
#include <cublasLt.h>

#include <cstddef>
#include <cstdint>

// A matrix product as cuBLASLt describes it, computed with plain loops in fp32.
namespace cuda_emulation {

struct Matrix {
  void* data = nullptr;
  cudaDataType type = CUDA_R_32F;
  int64_t rows = 0, cols = 0;
  int64_t leading = 0;  // elements between columns, or between rows where they are contiguous
  int64_t stride = 0;   // elements between the matrices of a batch
  int32_t batch = 1;
  bool by_rows = false;

  int64_t fast() const { return by_rows ? cols : rows; }
  int64_t slow() const { return by_rows ? rows : cols; }
  int64_t offset(int64_t i, int64_t j) const { return by_rows ? i * leading + j : j * leading + i; }
  size_t size_bytes() const;  // from the first element to the last
};

size_t element_bytes(cudaDataType type);

// Parts of a cublasLtEpilogue_t. Bias is added before the activation; an activation's derivative is
// multiplied with the product; gradients of biases are sums.
enum EpiloguePart : uint32_t {
  kRelu = CUBLASLT_EPILOGUE_RELU,
  kBias = CUBLASLT_EPILOGUE_BIAS,
  kGelu = CUBLASLT_EPILOGUE_GELU,
  kAux = 128,          // an activation's input: written with kGelu, read with kGeluGradient
  kGeluGradient = 64,  // always with kAux
  kSumOfRowsOfD = 16,  // into bias, with kGeluGradient
  kSumOfRowsOfA = CUBLASLT_EPILOGUE_BGRADA,     // over k
  kSumOfColumnsOfB = CUBLASLT_EPILOGUE_BGRADB,  // over k
  kBiasGradient = kSumOfRowsOfD | kSumOfRowsOfA | kSumOfColumnsOfB,
};

// d = epilogue(alpha * op(a) op(b) + beta * c), for each matrix of the batch.
struct Product {
  Matrix a, b, c, d;
  bool transpose_a = false, transpose_b = false;
  bool round_to_tf32 = false;  // the operands
  int32_t parts = 1;           // of each sum over k, joined one after the other
  float alpha = 1, beta = 0;
  uint32_t epilogue = 0;  // EpiloguePart
  void* bias = nullptr;   // of d's type, as is aux
  void* aux = nullptr;
  int64_t bias_stride = 0, aux_stride = 0, aux_leading = 0;

  int64_t m() const { return d.rows; }
  int64_t n() const { return d.cols; }
  int64_t k() const { return transpose_a ? a.rows : a.cols; }
  int64_t bias_size() const { return (epilogue & kSumOfColumnsOfB) != 0 ? n() : m(); }
};

void compute(const Product& product);
void fill_with_nan(const Matrix& matrix);

}  // namespace cuda_emulation
