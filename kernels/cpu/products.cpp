#include "kernels/cpu/products.h"

#include <algorithm>

#include "core/thread_pool.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/matmul.h"

namespace lockstep::kernels::cpu {
namespace {

constexpr int64_t kColumnPiece = 256;

// The gradient of a weight is cut into at least kWeightPieces pieces where its size allows, of at
// most 256 x 256 and at least 64 x 64; a piece adds up kSumRows rows at a time, in order.
constexpr int64_t kWeightPieces = 16;
constexpr int64_t kSumRows = 512;

int64_t pieces(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

const char* at(const void* data, int64_t element, DType dtype) {
  return static_cast<const char*>(data) + element * size_bytes(dtype);
}
char* at(void* data, int64_t element, DType dtype) {
  return static_cast<char*>(data) + element * size_bytes(dtype);
}

// The values of `x` in the type that products are made in: x's own, or a copy in `scratch`.
const void* operand(const Tensor& x, Scratch& scratch) {
  if (x.empty() || product_type(x.dtype()) == x.dtype()) return x.data();
  float* wide = scratch.get<float>(x.size());
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(x.size(), kElementGrain, [&](int64_t begin, int64_t end) {
      widen(wide + begin, x.as<T>() + begin, end - begin);
    });
  });
  return wide;
}

// Rounds fp32 values (rows, cols), `stride` apart, into out from (first_row, first_col) on.
void store(const Tensor& out, int64_t first_row, int64_t first_col, int64_t rows, int64_t cols,
           const float* values, int64_t stride) {
  with_float_type(out.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* into = out.as<T>() + first_row * out.cols() + first_col;
    for (int64_t n = 0; n < rows; n++) narrow(into + n * out.cols(), values + n * stride, cols);
  });
}

// Side lengths of the pieces of a weight gradient: halved, the longer first, until there are
// enough.
struct WeightPiece {
  int64_t outputs = 256, inputs = 256;
};
WeightPiece weight_piece(int64_t outputs, int64_t inputs) {
  WeightPiece piece;
  while (pieces(outputs, piece.outputs) * pieces(inputs, piece.inputs) < kWeightPieces &&
         piece.outputs * piece.inputs > 64 * 64) {
    (piece.outputs >= piece.inputs ? piece.outputs : piece.inputs) /= 2;
  }
  return piece;
}

}  // namespace

DType product_type(DType dtype) { return has_fast_product(dtype) ? dtype : DType::fp32; }

void product_by_rows(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     bool transposed) {
  static thread_local Scratch wide_x, wide_weight, wide_bias;
  const DType type = product_type(x.dtype());
  const void* a = operand(x, wide_x);
  const void* b = operand(weight, wide_weight);
  const void* c = operand(bias, wide_bias);
  const int64_t rows = x.rows(), k = x.cols(), columns = y.cols();
  const int64_t column_pieces = pieces(columns, kColumnPiece);
  // The product's own type is the output's, except where inputs had to be widened.
  const DType output = y.dtype() == type ? type : DType::fp32;

  parallel_for(column_pieces * pieces(rows, kRowPiece), 1, [&](int64_t piece, int64_t) {
    static thread_local Scratch filled_rows, product;
    const int64_t row = piece / column_pieces * kRowPiece;
    const int64_t column = piece % column_pieces * kColumnPiece;
    const int64_t count = std::min(kRowPiece, rows - row);
    const int64_t width = std::min(kColumnPiece, columns - column);
    const char* a_rows = at(a, row * k, type);
    if (count < kRowPiece) {
      void* filled = filled_rows.bytes(kRowPiece * k * size_bytes(type));
      std::memcpy(filled, a_rows, static_cast<size_t>(count * k * size_bytes(type)));
      a_rows = static_cast<const char*>(filled);
    }
    const bool direct = output == y.dtype() && count == kRowPiece;
    char* into = direct ? at(y.data(), row * columns + column, output)
                        : product.get<char>(kRowPiece * columns * size_bytes(output));
    gemm({.m = kRowPiece,
          .n = width,
          .k = k,
          .a_stride = k,
          .b_stride = weight.cols(),
          .c_stride = columns,
          .b_transposed = transposed,
          .bias = !bias.empty(),
          .inputs = type,
          .output = output},
         a_rows, at(b, transposed ? column * k : column, type), into,
         bias.empty() ? nullptr : at(c, column, type));
    if (direct) return;
    if (output != y.dtype()) {
      store(y, row, column, count, width, reinterpret_cast<const float*>(into), columns);
    } else {
      for (int64_t n = 0; n < count; n++) {
        std::memcpy(at(y.data(), (row + n) * columns + column, output),
                    at(into, n * columns, output), static_cast<size_t>(width * size_bytes(output)));
      }
    }
  });
}

void product_over_rows(const Tensor& dweight, const Tensor& dy, const Tensor& x) {
  static thread_local Scratch wide_dy, wide_x;
  const DType type = product_type(x.dtype());
  const void* a = operand(dy, wide_dy);
  const void* b = operand(x, wide_x);
  const int64_t rows = x.rows(), inputs = x.cols(), outputs = dy.cols();
  const WeightPiece size = weight_piece(outputs, inputs);
  const int64_t across = pieces(inputs, size.inputs);

  parallel_for(pieces(outputs, size.outputs) * across, 1, [&](int64_t piece, int64_t) {
    const int64_t output = piece / across * size.outputs, input = piece % across * size.inputs;
    for (int64_t row = 0; row < rows; row += kSumRows) {
      const Gemm gemm_of_piece{.m = std::min(size.outputs, outputs - output),
                               .n = std::min(size.inputs, inputs - input),
                               .k = std::min(kSumRows, rows - row),
                               .a_stride = outputs,
                               .b_stride = inputs,
                               .c_stride = inputs,
                               .a_transposed = true,
                               .accumulate = true,
                               .inputs = type};
      gemm(gemm_of_piece, at(a, row * outputs + output, type), at(b, row * inputs + input, type),
           dweight.as<float>() + output * inputs + input);
    }
  });
}

}  // namespace lockstep::kernels::cpu
