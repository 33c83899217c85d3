#include "kernels/matmul.h"

#include <algorithm>

#include "core/thread_pool.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {
namespace {

// oneDNN's bits depend on the number of rows, so every product by rows has exactly kRowPiece of
// them (the last piece is filled up): a row's result depends on that row and the weight alone. 64
// rows by 256 columns reach 95 % of the rate of a large product.
constexpr int64_t kRowPiece = 64;
constexpr int64_t kColumnPiece = 256;

// The gradient of the weight is cut into at least kWeightPieces pieces where its size allows, of at
// most 256 x 256 and at least 64 x 64; a piece adds up kSumRows rows at a time, in order.
constexpr int64_t kWeightPieces = 16;
constexpr int64_t kSumRows = 512;

// Up to this many rows, reading the weight is what costs: rows are multiplied one by one.
constexpr int64_t kFewRows = 4;

int64_t pieces(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

const char* at(const void* data, int64_t element, DType dtype) {
  return static_cast<const char*>(data) + element * size_bytes(dtype);
}
char* at(void* data, int64_t element, DType dtype) {
  return static_cast<char*>(data) + element * size_bytes(dtype);
}

template <class T>
LOCKSTEP_INLINE void widen_values(const T* in, float* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = to_float(in[i]);
}
LOCKSTEP_CLONES void widen(const bf16* in, float* out, int64_t n) { widen_values(in, out, n); }
LOCKSTEP_CLONES void widen(const fp16* in, float* out, int64_t n) { widen_values(in, out, n); }
void widen(const float* in, float* out, int64_t n) { std::copy_n(in, n, out); }

template <class T>
LOCKSTEP_INLINE void narrow_values(const float* in, T* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<T>(in[i]);
}
LOCKSTEP_CLONES void narrow(const float* in, bf16* out, int64_t n) { narrow_values(in, out, n); }
LOCKSTEP_CLONES void narrow(const float* in, fp16* out, int64_t n) { narrow_values(in, out, n); }
void narrow(const float* in, float* out, int64_t n) { std::copy_n(in, n, out); }

// The type that products of `dtype` are made in.
DType product_type(DType dtype) { return has_fast_product(dtype) ? dtype : DType::fp32; }

// The values of `x` in the type that products are made in: x's own, or a copy in `scratch`.
const void* operand(const Tensor& x, Scratch& scratch) {
  if (x.empty() || product_type(x.dtype()) == x.dtype()) return x.data();
  float* wide = scratch.get<float>(x.size());
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int64_t kGrain = 1 << 15;
    parallel_for(x.size(), kGrain, [&](int64_t begin, int64_t end) {
      widen(x.as<T>() + begin, wide + begin, end - begin);
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
    for (int64_t n = 0; n < rows; n++) narrow(values + n * stride, into + n * out.cols(), cols);
  });
}

// y (N, columns) = x (N, k) B (+ bias), with B the weight or its transpose.
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

// Sums of four products of rows, in lanes: sum_i x[i] * w[j * stride + i] for j < 4.
template <class T>
LOCKSTEP_INLINE void four_dots(const T* x, const T* w, int64_t stride, int64_t n, float* out) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < n; i++) {
    const float v = to_float(x[i]);
    s0 += v * to_float(w[i]);
    s1 += v * to_float(w[stride + i]);
    s2 += v * to_float(w[2 * stride + i]);
    s3 += v * to_float(w[3 * stride + i]);
  }
  out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}
LOCKSTEP_CLONES void dots(const float* x, const float* w, int64_t stride, int64_t n, float* out) {
  four_dots(x, w, stride, n, out);
}
LOCKSTEP_CLONES void dots(const bf16* x, const bf16* w, int64_t stride, int64_t n, float* out) {
  four_dots(x, w, stride, n, out);
}
LOCKSTEP_CLONES void dots(const fp16* x, const fp16* w, int64_t stride, int64_t n, float* out) {
  four_dots(x, w, stride, n, out);
}

template <class T>
void forward_few_rows(const Tensor& y, const T* x, const T* weight, const T* bias, int64_t rows,
                      int64_t inputs, int64_t outputs) {
  constexpr int64_t kOutputs = 4;
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / (inputs * kOutputs));
  parallel_for(pieces(outputs, kOutputs), grain, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; group++) {
      const int64_t first = group * kOutputs;
      const int64_t count = std::min(kOutputs, outputs - first);
      // A short last group reads its own row four times and keeps the sums it has.
      for (int64_t n = 0; n < rows; n++) {
        float sums[kOutputs];
        if (count == kOutputs) {
          dots(x + n * inputs, weight + first * inputs, inputs, inputs, sums);
        } else {
          for (int64_t o = 0; o < count; o++) {
            float same[kOutputs];
            dots(x + n * inputs, weight + (first + o) * inputs, 0, inputs, same);
            sums[o] = same[0];
          }
        }
        for (int64_t o = 0; bias != nullptr && o < count; o++) sums[o] += to_float(bias[first + o]);
        store(y, n, first, 1, count, sums, count);
      }
    }
  });
}

// dbias[o] += sum_n dy[n,o]: blocks of columns, each by one thread, rows in order.
template <class T>
LOCKSTEP_INLINE void add_rows(float* sum, const T* rows, int64_t count, int64_t stride, int64_t n) {
  for (int64_t r = 0; r < count; r++) {
#pragma omp simd
    for (int64_t o = 0; o < n; o++) sum[o] += to_float(rows[r * stride + o]);
  }
}
LOCKSTEP_CLONES void sum_rows(float* sum, const float* rows, int64_t count, int64_t stride,
                              int64_t n) {
  add_rows(sum, rows, count, stride, n);
}
LOCKSTEP_CLONES void sum_rows(float* sum, const bf16* rows, int64_t count, int64_t stride,
                              int64_t n) {
  add_rows(sum, rows, count, stride, n);
}
LOCKSTEP_CLONES void sum_rows(float* sum, const fp16* rows, int64_t count, int64_t stride,
                              int64_t n) {
  add_rows(sum, rows, count, stride, n);
}

void bias_gradient(const Tensor& dbias, const Tensor& dy) {
  constexpr int64_t kColumns = 64;
  const int64_t outputs = dy.cols(), rows = dy.rows();
  with_float_type(dy.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(outputs, kColumns, [&](int64_t begin, int64_t end) {
      // Partial sums of kRowPiece rows keep the error of a long sum small.
      for (int64_t row = 0; row < rows; row += kRowPiece) {
        float partial[kColumns] = {};
        sum_rows(partial, dy.as<T>() + row * outputs + begin, std::min(kRowPiece, rows - row),
                 outputs, end - begin);
        for (int64_t o = begin; o < end; o++) dbias.as<float>()[o] += partial[o - begin];
      }
    });
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

void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    Stream&) {
  CHECK(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows(),
        "{} = {} x {}", y.shape().to_string(), x.shape().to_string(), weight.shape().to_string());
  CHECK(x.dtype() == weight.dtype());
  CHECK(bias.empty() || (bias.size() == y.cols() && bias.dtype() == x.dtype()));
  if (x.rows() > kFewRows) return product_by_rows(y, x, weight, bias, true);
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward_few_rows(y, x.as<T>(), weight.as<T>(), bias.empty() ? nullptr : bias.as<T>(), x.rows(),
                     x.cols(), y.cols());
  });
}

void linear_backward_input(const Tensor& dx, const Tensor& dy, const Tensor& weight, Stream&) {
  CHECK(dx.rows() == dy.rows() && dy.cols() == weight.rows() && dx.cols() == weight.cols(),
        "{} = {} x {}", dx.shape().to_string(), dy.shape().to_string(), weight.shape().to_string());
  CHECK(dy.dtype() == weight.dtype());
  product_by_rows(dx, dy, weight, Tensor(), false);
}

void linear_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                            const Tensor& x, Stream&) {
  CHECK(dweight.rows() == dy.cols() && dweight.cols() == x.cols() && dy.rows() == x.rows(),
        "{} += {} x {}", dweight.shape().to_string(), dy.shape().to_string(),
        x.shape().to_string());
  CHECK(dy.dtype() == x.dtype() && dweight.dtype() == DType::fp32);
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
  if (!dbias.empty()) bias_gradient(dbias, dy);
}

}  // namespace lockstep::kernels::cpu
