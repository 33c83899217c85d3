#include "kernels/layernorm.h"

#include <algorithm>
#include <cmath>

#include "core/profile.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

template <class T>
LOCKSTEP_CLONES void forward_row(T* y, float* mean, float* rstd, const T* x, const T* gain,
                                 const T* bias, int64_t channels, float epsilon) {
  const auto count = static_cast<float>(channels);
  const float m =
      sum_terms(
          channels, [=](int64_t c) __attribute__((always_inline)) { return to_float(x[c]); }) /
      count;
  const float variance = sum_terms(
                             channels,
                             [=](int64_t c) __attribute__((always_inline)) {
                               const float centred = to_float(x[c]) - m;
                               return centred * centred;
                             }) /
                         count;
  const float r = 1.0f / std::sqrt(variance + epsilon);
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    y[c] = from_float<T>((to_float(x[c]) - m) * r * to_float(gain[c]) + to_float(bias[c]));
  }
  *mean = m;
  *rstd = r;
}

template <class T>
LOCKSTEP_CLONES void backward_row(T* dx, float* dgain, float* dbias, const T* dy, const T* x,
                                  const T* gain, float mean, float rstd, int64_t channels) {
  const auto count = static_cast<float>(channels);
  const Pair sums = sum_pairs(
      channels, [=](int64_t c) __attribute__((always_inline)) {
        const float g = to_float(dy[c]) * to_float(gain[c]);
        return Pair{g, g * (to_float(x[c]) - mean) * rstd};
      });
  const float mean_g = sums.first / count, mean_gh = sums.second / count;
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    const float upstream = to_float(dy[c]);
    const float h = (to_float(x[c]) - mean) * rstd;
    const float into_x = rstd * (upstream * to_float(gain[c]) - mean_g - h * mean_gh);
    dx[c] = from_float<T>(to_float(dx[c]) + into_x);
    dgain[c] += upstream * h;
    dbias[c] += upstream;
  }
}

template <class T>
void forward(T* y, float* mean, float* rstd, const T* x, const T* added, T* sum, const T* gain,
             const T* bias, int64_t rows, int64_t channels, float epsilon) {
  parallel_for(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t at = n * channels;
      if (added != nullptr) add_run(sum + at, x + at, added + at, channels);
      const T* row = added == nullptr ? x + at : sum + at;
      forward_row(y + at, mean + n, rstd + n, row, gain, bias, channels, epsilon);
    }
  });
}

template <class T>
void backward(T* dx, float* dgain, float* dbias, const T* dy, const T* x, const T* gain,
              const float* mean, const float* rstd, int64_t rows, int64_t channels) {
  const RowPartials partials(rows, 2 * channels);
  parallel_for(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    float* partial = partials.block(begin);
    std::fill_n(partial, 2 * channels, 0.0f);
    for (int64_t n = begin; n < end; n++) {
      backward_row(dx + n * channels, partial, partial + channels, dy + n * channels,
                   x + n * channels, gain, mean[n], rstd[n], channels);
    }
  });
  partials.add_to(dgain, 0, channels);
  partials.add_to(dbias, channels, channels);
}

}  // namespace

void layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                       const ResidualSum& residual, const Tensor& gain, const Tensor& bias,
                       float epsilon, Stream&) {
  CHECK(residual.fits(x) && y.size() == x.size() && mean.size() == x.rows() &&
        rstd.size() == x.rows());
  CHECK(gain.size() == x.cols() && bias.size() == x.cols());
  const ProfileScope scope(
      {"layernorm_forward", bytes_of(y, mean, rstd, x, residual.added, residual.sum, gain, bias)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward(y.as<T>(), mean.as<float>(), rstd.as<float>(), x.as<T>(),
            data_or_null<T>(residual.added), data_or_null<T>(residual.sum), gain.as<T>(),
            bias.as<T>(), x.rows(), x.cols(), epsilon);
  });
}

void layernorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias,
                        const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                        const Tensor& rstd, Stream&) {
  CHECK(dx.size() == x.size() && dy.size() == x.size());
  CHECK(mean.size() == x.rows() && rstd.size() == x.rows());
  CHECK(gain.size() == x.cols() && dgain.size() == x.cols() && dbias.size() == x.cols());
  const ProfileScope scope({"layernorm_backward", bytes_of(dx, dx, dy, x, gain, mean, rstd) +
                                                      2 * bytes_of(dgain, dbias)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    backward(dx.as<T>(), dgain.as<float>(), dbias.as<float>(), dy.as<T>(), x.as<T>(), gain.as<T>(),
             mean.as<float>(), rstd.as<float>(), x.rows(), x.cols());
  });
}

}  // namespace lockstep::kernels::cpu
