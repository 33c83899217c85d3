#include <algorithm>

#include "kernels/classifier.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/workspace.h"
#include "kernels/matmul.h"

namespace lockstep::kernels::cuda {
namespace {

// A block has a row: enough threads to hide the latency of a long one, few for a short one.
constexpr int kManyThreads = 1024, kFewThreads = 128;
constexpr int kShortRow = 4096;

// Exponentials of values seen so far: sum of exp(x - most).
struct Exponentials {
  float most = -INFINITY, sum = 0;
};

// kSize logits from v on; what is beyond the vocabulary does not count.
template <int kSize>
__device__ void load_logits(float (&x)[kSize], const float* logits, int v, int vocab_size) {
#pragma unroll
  for (int k = 0; k < kSize; k += Pack<float>::kSize) {
    const auto pack = *reinterpret_cast<const Pack<float>*>(logits + v + k);
#pragma unroll
    for (int i = 0; i < Pack<float>::kSize; i++) {
      x[k + i] = v + k + i < vocab_size ? pack.value[i] : -INFINITY;
    }
  }
}

template <int kSize>
__device__ void add(Exponentials& so_far, const float (&x)[kSize]) {
  float most = so_far.most;
#pragma unroll
  for (int i = 0; i < kSize; i++) most = fmaxf(most, x[i]);
  if (most > so_far.most) {
    so_far.sum *= expf(so_far.most - most);
    so_far.most = most;
  }
  // A thread that has met nothing but -inf must not make NaN of it: others may have met more.
  const float shift = most == -INFINITY ? 0 : most;
#pragma unroll
  for (int i = 0; i < kSize; i++) so_far.sum += expf(x[i] - shift);
}

// Loss of a row of logits, one block a row; where there is a `gradient`, it is written, too. It may
// take the place of the logits: a thread writes only what it alone reads. Rows are `stride` apart,
// and so a multiple of packs.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(float* __restrict__ losses, T* gradient, const float* logits,
                const int32_t* __restrict__ targets, int vocab_size, int64_t stride,
                const float* __restrict__ scale_there) {
  constexpr int kSize = Pack<T>::kSize;
  __shared__ float scratch[2][kThreads / kWarpSize];
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int target = targets[row];
  logits += row * stride;
  if (gradient != nullptr) gradient += row * stride;

  if (target == -1) {
    if (thread == 0) losses[row] = 0;
    if (gradient == nullptr) return;
    for (int v = thread * kSize; v < vocab_size; v += kThreads * kSize) {
      *reinterpret_cast<Pack<T>*>(gradient + v) = Pack<T>{};
    }
    return;
  }

  Exponentials mine;
#pragma unroll 2
  for (int v = thread * kSize; v < vocab_size; v += kThreads * kSize) {
    float x[kSize];
    load_logits(x, logits, v, vocab_size);
    add(mine, x);
  }
  // A target outside the vocabulary makes the loss and the gradient NaN, which stops the step.
  const bool valid = target >= 0 && target < vocab_size;
  const float target_logit = thread == 0 && valid ? logits[target] : NAN;
  const float most = block_max<kThreads>(mine.most, scratch[0]);
  const float sum = block_sum<kThreads>(mine.sum * expf(mine.most - most), scratch[1]);
  if (thread == 0) losses[row] = logf(sum) + (most - target_logit);
  if (gradient == nullptr) return;

  const float scale = *scale_there;
  const float factor = valid ? scale / sum : NAN;
#pragma unroll 2
  for (int v = thread * kSize; v < vocab_size; v += kThreads * kSize) {
    float x[kSize];
    load_logits(x, logits, v, vocab_size);
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      const float probable = expf(x[i] - most) * factor;
      pack.value[i] = rounded<T>(v + i == target ? probable - scale : probable);
    }
    *reinterpret_cast<Pack<T>*>(gradient + v) = pack;
  }
}

// Without a gradient: an empty one.
void rows_of_chunk(const Tensor& losses, const Matrix& gradient, const Matrix& logits,
                   const Tensor& targets, const float* scale, Stream& stream) {
  const auto vocab_size = static_cast<int>(logits.cols);
  with_float_type(gradient.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool few = vocab_size <= kShortRow;
    const auto row_bytes = static_cast<double>(
        logits.cols *
        (size_bytes(DType::fp32) + (gradient.data == nullptr ? 0 : size_bytes(gradient.dtype))));
    launch({"classifier_loss",
            static_cast<double>(logits.rows) * row_bytes + bytes_of(losses, targets)},
           few ? loss_kernel<T, kFewThreads> : loss_kernel<T, kManyThreads>,
           dim3(static_cast<unsigned>(logits.rows)), dim3(few ? kFewThreads : kManyThreads), 0,
           stream, losses.as<float>(), static_cast<T*>(gradient.data),
           static_cast<const float*>(logits.data), targets.as<int32_t>(), vocab_size, logits.stride,
           scale);
  });
}

void check_shapes(const Tensor& losses, const Tensor& x, const Tensor& weight,
                  const Tensor& targets) {
  CHECK(losses.size() == x.rows() && targets.size() == x.rows() && x.cols() == weight.cols(),
        "losses {}, targets {}, x {}, weight {}", losses.shape().to_string(),
        targets.shape().to_string(), x.shape().to_string(), weight.shape().to_string());
  CHECK(x.dtype() == weight.dtype() && losses.dtype() == DType::fp32);
}

// Writes losses and calls body(first, end, gradient of the logits) for each chunk; the gradient is
// none where there is no scale.
template <class Body>
void for_chunks(const Tensor& losses, const Tensor& x, const Tensor& weight, const Tensor& targets,
                const float* scale, Stream& stream, Body body) {
  const int64_t rows = x.rows(), vocab_size = weight.rows();
  const bool with_gradient = scale != nullptr;
  if (rows == 0) return;
  const ClassifierChunk chunk(rows, vocab_size, x.dtype(), with_gradient);
  auto* memory = static_cast<char*>(stream.workspace(chunk.total_bytes(), Workspace::classifier));
  // The gradient takes the place of fp32 logits; a smaller type has memory of its own behind them.
  void* gradient = !with_gradient             ? nullptr
                   : chunk.gradient_bytes > 0 ? memory + chunk.logits_bytes
                                              : memory;
  const Tensor x_rows = x.reshape({rows, x.cols()}), all_losses = losses.reshape({rows}),
               all_targets = targets.reshape({rows});
  for (int64_t first = 0; first < rows; first += chunk.rows) {
    const int64_t end = std::min(rows, first + chunk.rows);
    const Matrix logits{memory, DType::fp32, end - first, vocab_size, chunk.stride};
    const Matrix dlogits{gradient, x.dtype(), end - first, vocab_size, chunk.stride};
    product(logits, {matrix(x_rows.slice(first, end))}, transposed(matrix(weight)), Tensor(),
            Into::overwrite, stream);
    rows_of_chunk(all_losses.slice(first, end), dlogits, logits, all_targets.slice(first, end),
                  scale, stream);
    body(first, end, dlogits);
  }
}

}  // namespace

void classifier_loss(const Tensor& losses, const Tensor& x, const Tensor& weight,
                     const Tensor& targets, Stream& stream) {
  check_shapes(losses, x, weight, targets);
  for_chunks(losses, x, weight, targets, nullptr, stream, [](int64_t, int64_t, const Matrix&) {});
}

void classifier_loss_and_gradient(const Tensor& losses, const Tensor& dx, const Tensor& dweight,
                                  const Tensor& x, const Tensor& weight, const Tensor& targets,
                                  const float* scale, Stream& stream) {
  check_shapes(losses, x, weight, targets);
  CHECK(dx.size() == x.size() && dx.dtype() == x.dtype() && dweight.size() == weight.size() &&
        dweight.dtype() == DType::fp32);
  const Shape rows{x.rows(), x.cols()};
  const Tensor x_rows = x.reshape(rows), dx_rows = dx.reshape(rows);
  for_chunks(losses, x, weight, targets, scale, stream,
             [&](int64_t first, int64_t end, const Matrix& dlogits) {
               product(matrix(dx_rows.slice(first, end)), {dlogits}, {matrix(weight)}, Tensor(),
                       Into::overwrite, stream);
               product(matrix(dweight), transposed(dlogits), {matrix(x_rows.slice(first, end))},
                       Tensor(), Into::add, stream);
             });
}

void classifier_logits(const Tensor& logits, const Tensor& x, const Tensor& weight,
                       Stream& stream) {
  linear_forward(logits, x, weight, Tensor(), stream);
}

}  // namespace lockstep::kernels::cuda
