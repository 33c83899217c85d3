#include "kernels/classifier.h"

#include <algorithm>
#include <cmath>

#include "core/profile.h"
#include "core/thread_pool.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"
#include "kernels/matmul.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

// Tokens a chunk: at most as many as have kLogitsBytes of logits, in whole pieces of the product,
// and in chunks of nearly equal length. Fewer would read and write the weight and its gradient more
// often than the products take.
constexpr int64_t kLogitsBytes = 64 << 20;
constexpr int64_t kMaxChunk = 1024;

int64_t chunk_rows(int64_t rows, int64_t vocab_size) {
  const int64_t fit = kLogitsBytes / (vocab_size * size_bytes(DType::fp32));
  const int64_t most = std::clamp(fit / kRowPiece * kRowPiece, kRowPiece, kMaxChunk);
  return even_pieces(std::max<int64_t>(1, rows), most);
}

template <class T>
LOCKSTEP_CLONES void scaled(T* out, const float* x, float scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<T>(x[i] * scale);
}

// Loss of a row of logits, which become exponentials, of sum `sum`.
float row_loss(float* logits, int64_t vocab_size, int32_t target, double* sum) {
  const float shift = maximum(logits, vocab_size);
  const double target_logit = logits[target];
  *sum = exponentials(logits, 1.0f, shift, vocab_size);
  return static_cast<float>(std::log(*sum) + shift - target_logit);
}

void check_shapes(const Tensor& losses, const Tensor& x, const Tensor& weight,
                  const Tensor& targets) {
  CHECK(losses.size() == x.rows() && targets.size() == x.rows() && x.cols() == weight.cols(),
        "losses {}, targets {}, x {}, weight {}", losses.shape().to_string(),
        targets.shape().to_string(), x.shape().to_string(), weight.shape().to_string());
  CHECK(x.dtype() == weight.dtype() && losses.dtype() == DType::fp32);
}

// Calls body(first_row, end_row, logits) for each chunk.
template <class Body>
void for_chunks(const Tensor& x, const Tensor& weight, Body body) {
  static thread_local Scratch scratch;
  const int64_t rows = x.rows(), vocab_size = weight.rows(), chunk = chunk_rows(rows, vocab_size);
  const Tensor x_rows = x.reshape({rows, x.cols()});
  float* memory = scratch.get<float>(std::min(rows, chunk) * vocab_size);
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t end = std::min(rows, first + chunk);
    const Tensor logits(memory, DType::fp32, {end - first, vocab_size});
    product_by_rows(logits, x_rows.slice(first, end), weight, Tensor(), true);
    body(first, end, logits);
  }
}

int32_t checked_target(const Tensor& targets, int64_t row, int64_t vocab_size) {
  const int32_t target = targets.as<int32_t>()[row];
  CHECK(target >= -1 && target < vocab_size, "target {} of row {} is not in a vocabulary of {}",
        target, row, vocab_size);
  return target;
}

}  // namespace

void classifier_loss(const Tensor& losses, const Tensor& x, const Tensor& weight,
                     const Tensor& targets, Stream&) {
  check_shapes(losses, x, weight, targets);
  const int64_t vocab_size = weight.rows();
  for_chunks(x, weight, [&](int64_t first, int64_t end, const Tensor& logits) {
    const ProfileScope scope({"classifier_loss", bytes_of(logits)});
    parallel_for(end - first, 1, [&](int64_t row, int64_t) {
      const int32_t target = checked_target(targets, first + row, vocab_size);
      double sum;
      losses.as<float>()[first + row] =
          target < 0 ? 0.0f
                     : row_loss(logits.as<float>() + row * vocab_size, vocab_size, target, &sum);
    });
  });
}

void classifier_loss_and_gradient(const Tensor& losses, const Tensor& dx, const Tensor& dweight,
                                  const Tensor& x, const Tensor& weight, const Tensor& targets,
                                  const float* scale_there, Stream&) {
  check_shapes(losses, x, weight, targets);
  CHECK(dx.size() == x.size() && dx.dtype() == x.dtype() && dweight.size() == weight.size() &&
        dweight.dtype() == DType::fp32);
  static thread_local Scratch narrowed;
  const float scale = *scale_there;
  const int64_t vocab_size = weight.rows(), channels = x.cols();
  const Tensor x_rows = x.reshape({x.rows(), channels}), dx_rows = dx.reshape(x_rows.shape());
  for_chunks(x, weight, [&](int64_t first, int64_t end, const Tensor& logits) {
    // The gradient takes the place of fp32 logits; a smaller type has memory of its own.
    const bool in_place = x.dtype() == DType::fp32;
    const Tensor dlogits(
        in_place ? logits.data() : narrowed.bytes(logits.size() * size_bytes(x.dtype())), x.dtype(),
        logits.shape());
    with_float_type(x.dtype(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      const ProfileScope scope({"classifier_loss", bytes_of(logits, dlogits)});
      parallel_for(end - first, 1, [&](int64_t row, int64_t) {
        float* values = logits.as<float>() + row * vocab_size;
        T* gradient = dlogits.as<T>() + row * vocab_size;
        const int32_t target = checked_target(targets, first + row, vocab_size);
        float& loss = losses.as<float>()[first + row];
        loss = 0;
        if (target < 0) return void(std::fill_n(gradient, vocab_size, T{}));
        double sum;
        loss = row_loss(values, vocab_size, target, &sum);
        const float factor = static_cast<float>(scale / sum);
        const float of_target = values[target] * factor - scale;
        scaled(gradient, values, factor, vocab_size);
        gradient[target] = from_float<T>(of_target);
      });
    });
    product_by_rows(dx_rows.slice(first, end), dlogits, weight, Tensor(), false);
    product_over_rows(dweight, dlogits, x_rows.slice(first, end));
  });
}

void classifier_logits(const Tensor& logits, const Tensor& x, const Tensor& weight,
                       Stream& stream) {
  linear_forward_one_by_one(logits, x, weight, Tensor(), stream);
}

}  // namespace lockstep::kernels::cpu
