#include "kernels/cuda/bias_gradient.h"
#include "kernels/cuda/product.h"
#include "kernels/matmul.h"

namespace lockstep::kernels::cuda {
namespace {

void check_forward(const Tensor& y, const Tensor& x, const Tensor& weight) {
  CHECK(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows(),
        "{} = {} x {}", y.shape().to_string(), x.shape().to_string(), weight.shape().to_string());
}

void check_backward_input(const Tensor& dx, const Tensor& dy, const Tensor& weight) {
  CHECK(dx.rows() == dy.rows() && dy.cols() == weight.rows() && dx.cols() == weight.cols(),
        "{} = {} x {}", dx.shape().to_string(), dy.shape().to_string(), weight.shape().to_string());
}

}  // namespace

void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    Stream& stream) {
  check_forward(y, x, weight);
  product(matrix(y), {matrix(x)}, transposed(matrix(weight)), bias, Into::overwrite, stream);
}

void linear_backward_input(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                           Stream& stream) {
  check_backward_input(dx, dy, weight);
  product(matrix(dx), {matrix(dy)}, {matrix(weight)}, Tensor(), Into::overwrite, stream);
}

// The product reads dy anyway. It writes the sums of its columns where we add, so they go through
// the workspace: a row, where a kernel of its own would read all of dy again.
void linear_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                            const Tensor& x, Stream& stream) {
  CHECK(dweight.rows() == dy.cols() && dweight.cols() == x.cols() && dy.rows() == x.rows(),
        "{} += {} x {}", dweight.shape().to_string(), dy.shape().to_string(),
        x.shape().to_string());
  CHECK(dweight.dtype() == DType::fp32);
  if (dy.size() == 0) return;
  if (!dbias.empty()) {
    const int64_t outputs = dy.cols();
    const Tensor sums(stream.workspace(outputs * size_bytes(DType::fp32)), DType::fp32,
                      {1, outputs}, Device::cuda);
    if (fused_product(matrix(dweight), transposed(matrix(dy)), {matrix(x)},
                      {Epilogue::Kind::row_sums, sums}, Into::add, stream)) {
      return add_bias_gradient(dbias, sums, stream);
    }
    add_bias_gradient(dbias, dy, stream);
  }
  product(matrix(dweight), transposed(matrix(dy)), {matrix(x)}, Tensor(), Into::add, stream);
}

void linear_activation_forward(const Tensor& y, const Tensor& z, const Tensor& x,
                               const Tensor& weight, const Tensor& bias, Activation activation,
                               Stream& stream) {
  check_forward(y, x, weight);
  CHECK(z.size() == y.size() && z.dtype() == y.dtype());
  if (activation == Activation::gelu_tanh &&
      fused_product(matrix(y), {matrix(x)}, transposed(matrix(weight)),
                    {Epilogue::Kind::gelu, bias, matrix(z)}, Into::overwrite, stream)) {
    return;
  }
  linear_forward(z, x, weight, bias, stream);
  cuda::activation_forward(y, z, activation, stream);
}

// The library could sum the columns of dz as well, but only into its own dtype: bias gradients
// would be rounded to bf16 or fp16. The product for the gradient of the next weight sums them in
// fp32.
void linear_activation_backward_input(const Tensor& dz, const Tensor& dy, const Tensor& weight,
                                      const Tensor& z, Activation activation, Stream& stream) {
  check_backward_input(dz, dy, weight);
  CHECK(z.size() == dz.size() && z.dtype() == dz.dtype());
  if (activation == Activation::gelu_tanh &&
      fused_product(matrix(dz), {matrix(dy)}, {matrix(weight)},
                    {Epilogue::Kind::gelu_gradient, Tensor(), matrix(z)}, Into::overwrite,
                    stream)) {
    return;
  }
  linear_backward_input(dz, dy, weight, stream);
  cuda::activation_backward(dz, dz, z, activation, stream);
}

}  // namespace lockstep::kernels::cuda
