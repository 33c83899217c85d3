#include "kernels/cpu/products.h"

#include <algorithm>

#include "core/profile.h"
#include "core/range.h"
#include "core/thread_pool.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"
#include "kernels/matmul.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

constexpr int64_t kColumnPiece = 128;         // half of it for a narrow output
constexpr int64_t kRowGroup = 8 * kRowPiece;  // rows that a piece of the weight is packed for
constexpr int64_t kSumBytes = 6 << 10;        // of a row, added up in one product

// The gradient of a weight is cut into at least kWeightPieces pieces where its size allows, of at
// most 256 x 256 and at least 64 x 128; a piece adds up rows of dy in order, as many at a time as
// make columns of kWeightSumBytes.
constexpr int64_t kWeightPieces = 16;
constexpr int64_t kWeightSumBytes = 1 << 10;

// Rows a multiple of 2 KB apart share few places of the caches: a product reads a copy instead.
bool is_slow_stride(int64_t stride, int64_t element_bytes) {
  return stride * element_bytes % 2048 == 0;
}

// x in the type P: its own values, or a copy in `scratch`.
template <class P, class T>
const P* as_product_type(const Tensor& x, Scratch& scratch) {
  if constexpr (std::is_same_v<P, T>) {
    return x.as<T>();
  } else {
    P* wide = scratch.get<P>(x.size());
    const ProfileScope scope({"widen", bytes_of(x) + static_cast<double>(x.size()) * sizeof(P)});
    parallel_for(x.size(), kElementGrain, [&](int64_t begin, int64_t end) {
      widen(wide + begin, x.as<T>() + begin, end - begin);
    });
    return wide;
  }
}

// Rounds a piece of y into its place.
template <class Y>
void store(Y* y, int64_t stride, const float* sums, int64_t sum_stride, int64_t rows,
           int64_t cols) {
  for (int64_t n = 0; n < rows; n++) narrow(y + n * stride, sums + n * sum_stride, cols);
}

// Columns [column, column + width) of y = x B + bias for rows [row, end).
template <class T, class P>
class RowsTask {
 public:
  RowsTask(const Tensor& y, const P* x, const Tensor& weight, const Tensor& bias, bool transposed)
      : y_(y),
        x_(x),
        weight_(weight),
        bias_(bias),
        transposed_(transposed),
        k_(transposed ? weight.cols() : weight.rows()),
        sum_length_(even_pieces(k_, kSumBytes / static_cast<int64_t>(sizeof(P)))) {}

  void run(int64_t row, int64_t end, int64_t column, int64_t width) const {
    static thread_local Scratch sum_scratch;
    float bias[kColumnPiece];
    if (!bias_.empty()) widen(bias, bias_.as<T>() + column, width);
    // Sums of fp32 grow where they belong, but for those of a short piece; others are rounded.
    const bool in_place = y_.dtype() == DType::fp32;
    const int64_t whole = in_place ? (end - row) / kRowPiece * kRowPiece : 0;
    const int64_t sum_stride = in_place ? y_.cols() : width;
    const int64_t in_scratch = round_up(end - row - whole, kRowPiece);
    float* sums = sum_scratch.get<float>(in_scratch * sum_stride);
    for (int64_t k = 0; k < k_; k += sum_length_) {
      Gemm product{.m = kRowPiece,
                   .n = width,
                   .k = std::min(sum_length_, k_ - k),
                   .a_stride = k_,
                   .b_stride = width,
                   .c_stride = sum_stride,
                   .accumulate = k > 0,
                   .add_bias = k + sum_length_ >= k_ && !bias_.empty(),
                   .inputs = kDTypeOf<P>};
      const void* b = packed(product, k, column);
      for (int64_t n = row; n < end; n += kRowPiece) {
        float* sums_of_rows = n < row + whole ? y_.as<float>() + n * sum_stride + column
                                              : sums + (n - row - whole) * sum_stride;
        gemm(product, rows_of_x(n, std::min(kRowPiece, end - n), k, product.k), b, sums_of_rows,
             product.add_bias ? bias : nullptr);
      }
    }
    with_float_type(y_.dtype(), [&](auto tag) {
      using Y = typename decltype(tag)::type;
      store(y_.as<Y>() + (row + whole) * y_.cols() + column, y_.cols(), sums, sum_stride,
            end - row - whole, width);
    });
  }

 private:
  // kRowPiece rows of x from row n and column k on, `count` of them real, the others undefined.
  const P* rows_of_x(int64_t n, int64_t count, int64_t k, int64_t columns) const {
    static thread_local Scratch scratch;
    const P* rows = x_ + n * k_ + k;
    if (count == kRowPiece) return rows;
    P* filled = scratch.get<P>(kRowPiece * k_);
    for (int64_t r = 0; r < count; r++) std::copy_n(rows + r * k_, columns, filled + r * k_);
    return filled;
  }

  // Rows [k, k + product.k) of columns [column, column + product.n) of B. Completes `product`.
  const void* packed(Gemm& product, int64_t k, int64_t column) const {
    static thread_local Scratch scratch;
    const int64_t stride = weight_.cols();
    const T* b = weight_.as<T>() + (transposed_ ? column * k_ + k : k * stride + column);
    if constexpr (sizeof(P) == sizeof(float)) {
      P* out = scratch.get<P>(product.k * product.n);
      if (transposed_) {
        pack_transposed(out, b, stride, product.n, product.k);
      } else {
        pack(out, b, stride, product.k, product.n);
      }
      return out;
    } else {
      static thread_local Scratch transposed;
      product.b_packed = true;
      if (transposed_ && is_slow_stride(stride, sizeof(T))) {
        P* out = transposed.get<P>(product.k * product.n);
        pack_transposed(out, b, stride, product.n, product.k);
        return pack_for(product, out, scratch);
      }
      product.b_transposed = transposed_, product.b_stride = stride;
      return pack_for(product, b, scratch);
    }
  }

  const Tensor& y_;
  const P* x_;
  const Tensor &weight_, &bias_;
  const bool transposed_;
  const int64_t k_, sum_length_;
};

// Side lengths of the pieces of a weight gradient: halved, the longer first, until there are
// enough.
struct WeightPiece {
  int64_t outputs = 256, inputs = 256;
};
WeightPiece weight_piece(int64_t outputs, int64_t inputs) {
  WeightPiece piece;
  while (pieces(outputs, piece.outputs) * pieces(inputs, piece.inputs) < kWeightPieces &&
         piece.outputs * piece.inputs > 64 * 128) {
    (piece.outputs >= piece.inputs ? piece.outputs : piece.inputs) /= 2;
  }
  return piece;
}

// Piece (outputs, inputs) of dweight, from (output, input) on.
template <class T, class P>
void weight_task(const Tensor& dweight, const T* dy, const T* x, int64_t rows, int64_t output,
                 int64_t outputs, int64_t input, int64_t inputs) {
  static thread_local Scratch a_scratch, b_scratch;
  constexpr bool kConvert = !std::is_same_v<P, T>;
  const int64_t dy_stride = dweight.rows(), x_stride = dweight.cols();
  const bool copy_a = kConvert || is_slow_stride(dy_stride, sizeof(T));
  const bool copy_b = kConvert || is_slow_stride(x_stride, sizeof(T));
  constexpr int64_t kSumRows = kWeightSumBytes / sizeof(P);
  for (int64_t row = 0; row < rows; row += kSumRows) {
    const int64_t count = std::min(kSumRows, rows - row);
    const T* dy_piece = dy + row * dy_stride + output;
    const T* x_piece = x + row * x_stride + input;
    const void *a = dy_piece, *b = x_piece;
    if (copy_a) {
      P* out = a_scratch.get<P>(count * outputs);
      pack_transposed(out, dy_piece, dy_stride, count, outputs);
      a = out;
    }
    if (copy_b) {
      P* out = b_scratch.get<P>(count * inputs);
      pack(out, x_piece, x_stride, count, inputs);
      b = out;
    }
    gemm({.m = outputs,
          .n = inputs,
          .k = count,
          .a_stride = copy_a ? count : dy_stride,
          .b_stride = copy_b ? inputs : x_stride,
          .c_stride = x_stride,
          .a_transposed = !copy_a,
          .accumulate = true,
          .inputs = kDTypeOf<P>},
         a, b, dweight.as<float>() + output * x_stride + input);
  }
}

}  // namespace

DType product_type(DType dtype) { return has_fast_product(dtype) ? dtype : DType::fp32; }

void product_by_rows(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     bool transposed) {
  static thread_local Scratch wide;
  const int64_t rows = x.rows(), columns = y.cols(), groups = pieces(rows, kRowGroup);
  const int64_t width = columns < 2 * kColumnPiece ? kColumnPiece / 2 : kColumnPiece;
  const ProductSize size{rows, columns, x.cols()};
  const ProfileScope scope({transposed ? "product_forward" : "product_input_gradient",
                            bytes_of(y, x, weight, bias), size.flops(), Unit::tensor, size});
  with_product_types(x.dtype(), [&](auto element, auto product) {
    using T = typename decltype(element)::type;
    using P = typename decltype(product)::type;
    const RowsTask<T, P> task(y, as_product_type<P, T>(x, wide), weight, bias, transposed);
    parallel_for(groups * pieces(columns, width), 1, [&](int64_t piece, int64_t) {
      const int64_t row = piece % groups * kRowGroup, column = piece / groups * width;
      task.run(row, std::min(rows, row + kRowGroup), column, std::min(width, columns - column));
    });
  });
}

void product_over_rows(const Tensor& dweight, const Tensor& dy, const Tensor& x) {
  const int64_t rows = x.rows(), inputs = x.cols(), outputs = dy.cols();
  const WeightPiece piece_size = weight_piece(outputs, inputs);
  const int64_t across = pieces(inputs, piece_size.inputs);
  const ProductSize size{outputs, inputs, rows};
  const ProfileScope scope({"product_weight_gradient", bytes_of(dweight, dweight, dy, x),
                            size.flops(), Unit::tensor, size});
  with_product_types(x.dtype(), [&](auto element, auto product) {
    using T = typename decltype(element)::type;
    using P = typename decltype(product)::type;
    parallel_for(pieces(outputs, piece_size.outputs) * across, 1, [&](int64_t piece, int64_t) {
      const int64_t output = piece / across * piece_size.outputs;
      const int64_t input = piece % across * piece_size.inputs;
      weight_task<T, P>(dweight, dy.as<T>(), x.as<T>(), rows, output,
                        std::min(piece_size.outputs, outputs - output), input,
                        std::min(piece_size.inputs, inputs - input));
    });
  });
}

}  // namespace lockstep::kernels::cpu
