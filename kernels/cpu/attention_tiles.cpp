#include "kernels/cpu/attention_tiles.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/cpu/dropout_factors.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {
namespace {

// As T would hold it.
template <class T, class P>
LOCKSTEP_INLINE P rounded(float x) {
  if constexpr (std::is_same_v<P, T>) {
    return from_float<P>(x);
  } else {
    return to_float(from_float<T>(x));
  }
}

template <class T>
LOCKSTEP_CLONES void store_scaled(T* out, const float* values, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<T>(values[i] * factor);
}

template <class P>
void zero(P* out, int64_t begin, int64_t end) {
  std::fill(out + begin, out + end, P{});
}

template <class T, class P>
LOCKSTEP_CLONES float run_of_probabilities(P* out, const float* scores, float scale, float shift,
                                           int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const float p = math::exp_of_negative(scale * scores[i] - shift);
    sum += p;
    out[i] = rounded<T, P>(p);
  }
  return sum;
}

template <class T, class P>
LOCKSTEP_CLONES float run_of_probabilities(P* out, const float* scores, const float* factors,
                                           float scale, float shift, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const float p = math::exp_of_negative(scale * scores[i] - shift);
    sum += p;
    out[i] = rounded<T, P>(p * factors[i]);
  }
  return sum;
}

template <class T, class P>
LOCKSTEP_CLONES void run_of_gradients(P* probability, P* score_gradient, const float* scores,
                                      const float* gradient, float scale, float lse, float delta,
                                      int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float p = math::exp_of_negative(scale * scores[i] - lse);
    score_gradient[i] = rounded<T, P>(p * (gradient[i] - delta));
    probability[i] = rounded<T, P>(p);
  }
}

template <class T, class P>
LOCKSTEP_CLONES void run_of_gradients(P* probability, P* score_gradient, const float* scores,
                                      const float* gradient, const float* factors, float scale,
                                      float lse, float delta, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float p = math::exp_of_negative(scale * scores[i] - lse);
    score_gradient[i] = rounded<T, P>(p * (factors[i] * gradient[i] - delta));
    probability[i] = rounded<T, P>(p * factors[i]);
  }
}

// Fills scores up to a whole number of vectors, with what has no probability.
int64_t fill_up(float* scores, int64_t valid) {
  const int64_t filled = round_up(valid, 16);
  std::fill(scores + valid, scores + filled, -std::numeric_limits<float>::infinity());
  return filled;
}

}  // namespace

const void* gather(Scratch& scratch, const HeadRows& rows, int64_t count, int64_t filled,
                   int64_t head_dim, DType type) {
  void* out = scratch.get<char>(filled * head_dim * size_bytes(type));
  gather(out, rows, count, filled, head_dim, type);
  return out;
}

void gather(void* to, const HeadRows& rows, int64_t count, int64_t filled, int64_t head_dim,
            DType type) {
  char* out = static_cast<char*>(to);
  const auto row_bytes = static_cast<size_t>(head_dim * size_bytes(type));
  with_float_type(rows.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* in = static_cast<const T*>(rows.data);
    for (int64_t n = 0; n < count; n++) {
      if (type == rows.dtype) {
        std::memcpy(out + n * row_bytes, in + n * rows.stride, row_bytes);
      } else {
        widen(reinterpret_cast<float*>(out + n * row_bytes), in + n * rows.stride, head_dim);
      }
    }
  });
  std::memset(out + count * row_bytes, 0, (filled - count) * row_bytes);
}

const void* as_columns(Scratch& scratch, const void* rows, int64_t count, int64_t head_dim,
                       DType type) {
  if (type != DType::fp32) return rows;
  float* out = scratch.get<float>(count * head_dim);
  for (int64_t row = 0; row < count; row += kKeyStep) {
    pack_transposed(out + row * head_dim, static_cast<const float*>(rows) + row * head_dim,
                    head_dim, kKeyStep, head_dim);
  }
  return out;
}

void scatter(const HeadRows& rows, const float* values, int64_t count, int64_t head_dim,
             float factor) {
  with_float_type(rows.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t n = 0; n < count; n++) {
      store_scaled(static_cast<T*>(rows.data) + n * rows.stride, values + n * head_dim, factor,
                   head_dim);
    }
  });
}

template <class T, class P>
float probabilities(P* out, float* scores, const float* factors, float scale, float shift,
                    int64_t valid, int64_t count) {
  const int64_t n = fill_up(scores, valid);
  const float sum = factors == nullptr
                        ? run_of_probabilities<T, P>(out, scores, scale, shift, n)
                        : run_of_probabilities<T, P>(out, scores, factors, scale, shift, n);
  zero(out, n, count);
  return sum;
}

template <class T, class P>
void probabilities_and_gradient(P* probability, P* score_gradient, float* scores,
                                const float* gradient, const float* factors, float scale, float lse,
                                float delta, int64_t valid, int64_t count) {
  const int64_t n = fill_up(scores, valid);
  if (factors == nullptr) {
    run_of_gradients<T, P>(probability, score_gradient, scores, gradient, scale, lse, delta, n);
  } else {
    run_of_gradients<T, P>(probability, score_gradient, scores, gradient, factors, scale, lse,
                           delta, n);
  }
  zero(probability, n, count);
  zero(score_gradient, n, count);
}

const float* ProbabilityMask::factors(int64_t t, int64_t first, int64_t count) const {
  if (!mask_.active()) return nullptr;
  constexpr int64_t kQuads = kTileKeys / 4 + 1;
  alignas(64) static thread_local float factors[4 * kQuads];
  const int64_t place = (head_ * tokens_ + t) * tokens_ + first;
  const int64_t quad = place / 4, offset = place % 4;
  dropout_factors(factors, mask_, sequence_, quad, (offset + count + 3) / 4);
  return factors + offset;
}

#define LOCKSTEP_INSTANTIATE(T, P)                                                              \
  template float probabilities<T, P>(P*, float*, const float*, float, float, int64_t, int64_t); \
  template void probabilities_and_gradient<T, P>(P*, P*, float*, const float*, const float*,    \
                                                 float, float, float, int64_t, int64_t);
LOCKSTEP_INSTANTIATE(float, float)
LOCKSTEP_INSTANTIATE(bf16, bf16)
LOCKSTEP_INSTANTIATE(bf16, float)
LOCKSTEP_INSTANTIATE(fp16, fp16)
LOCKSTEP_INSTANTIATE(fp16, float)
#undef LOCKSTEP_INSTANTIATE

}  // namespace lockstep::kernels::cpu
