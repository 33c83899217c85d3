#pragma once
#include "core/range.h"
#include "core/tensor.h"

// Matrix products on all threads, cut into pieces that depend on the shape alone.
namespace lockstep::kernels::cpu {

// oneDNN's bits depend on the number of rows of a product. So every product by rows has exactly
// kRowPiece of them, the last piece filled up: a row's result depends on that row and the weight
// alone.
inline constexpr int64_t kRowPiece = 64;

// The length of pieces of nearly equal length, a multiple of kRowPiece, that cover n > 0; at most
// `most`, which is one, too.
inline int64_t even_pieces(int64_t n, int64_t most) {
  return round_up(pieces(n, pieces(n, most)), kRowPiece);
}

// The type that operands of type `dtype` are multiplied in: their own, or fp32 where the machine
// has no product of it.
DType product_type(DType dtype);

// Calls f(Tag<T>, Tag<P>): the type of the elements and the type that they are multiplied in.
template <class F>
void with_product_types(DType dtype, F&& f) {
  with_float_type(dtype, [&](auto tag) {
    if (product_type(dtype) == dtype) return f(tag, tag);
    f(tag, Tag<float>{});
  });
}

// y (N, columns) = x (N, k) B + bias, where B is `weight` (k, columns), or, if `transposed`, the
// transpose of `weight` (columns, k). bias (columns) may be empty. x, weight and bias share one
// dtype; y has the same or fp32.
void product_by_rows(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     bool transposed);

// dweight[o,i] += sum_n dy[n,o] * x[n,i]. dweight (O, I) fp32; dy (N, O) and x (N, I) share one
// dtype.
void product_over_rows(const Tensor& dweight, const Tensor& dy, const Tensor& x);

}  // namespace lockstep::kernels::cpu
