#include "kernels/rmsnorm.h"

#include <algorithm>
#include <cmath>

#include "core/profile.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

template <class T>
LOCKSTEP_CLONES void forward_row(T* y, float* inv_rms, const T* x, const T* gain, int64_t channels,
                                 float epsilon) {
  const float sum = sum_terms(
      channels, [=](int64_t c)
                    __attribute__((always_inline)) { return to_float(x[c]) * to_float(x[c]); });
  const float r = 1.0f / std::sqrt(sum / static_cast<float>(channels) + epsilon);
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    y[c] = from_float<T>(to_float(x[c]) * r * to_float(gain[c]));
  }
  *inv_rms = r;
}

template <class T>
LOCKSTEP_CLONES void backward_row(T* dx, float* dgain, const T* dy, const T* x, const T* gain,
                                  float inv_rms, int64_t channels) {
  const float sum = sum_terms(
      channels, [=](int64_t c) __attribute__((always_inline)) {
        return to_float(dy[c]) * to_float(gain[c]) * (to_float(x[c]) * inv_rms);
      });
  const float mean = sum / static_cast<float>(channels);
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    const float upstream = to_float(dy[c]);
    const float h = to_float(x[c]) * inv_rms;
    const float into_x = inv_rms * (upstream * to_float(gain[c]) - h * mean);
    dx[c] = from_float<T>(to_float(dx[c]) + into_x);
    dgain[c] += upstream * h;
  }
}

template <class T>
void forward(T* y, float* inv_rms, const T* x, const T* added, T* sum, const T* gain, int64_t rows,
             int64_t channels, float epsilon) {
  parallel_for(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t at = n * channels;
      if (added != nullptr) add_run(sum + at, x + at, added + at, channels);
      forward_row(y + at, inv_rms + n, added == nullptr ? x + at : sum + at, gain, channels,
                  epsilon);
    }
  });
}

template <class T>
void backward(T* dx, float* dgain, const T* dy, const T* x, const T* gain, const float* inv_rms,
              int64_t rows, int64_t channels) {
  const RowPartials partials(rows, channels);
  parallel_for(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    float* partial = partials.block(begin);
    std::fill_n(partial, channels, 0.0f);
    for (int64_t n = begin; n < end; n++) {
      backward_row(dx + n * channels, partial, dy + n * channels, x + n * channels, gain,
                   inv_rms[n], channels);
    }
  });
  partials.add_to(dgain, 0, channels);
}

}  // namespace

void rmsnorm_forward(const Tensor& y, const Tensor& inv_rms, const Tensor& x,
                     const ResidualSum& residual, const Tensor& gain, float epsilon, Stream&) {
  CHECK(residual.fits(x) && y.size() == x.size() && inv_rms.size() == x.rows() &&
        gain.size() == x.cols());
  const ProfileScope scope(
      {"rmsnorm_forward", bytes_of(y, inv_rms, x, residual.added, residual.sum, gain)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward(y.as<T>(), inv_rms.as<float>(), x.as<T>(), data_or_null<T>(residual.added),
            data_or_null<T>(residual.sum), gain.as<T>(), x.rows(), x.cols(), epsilon);
  });
}

void rmsnorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dy, const Tensor& x,
                      const Tensor& gain, const Tensor& inv_rms, Stream&) {
  CHECK(dx.size() == x.size() && dy.size() == x.size() && inv_rms.size() == x.rows());
  CHECK(gain.size() == x.cols() && dgain.size() == x.cols());
  const ProfileScope scope(
      {"rmsnorm_backward", bytes_of(dx, dx, dy, x, gain, inv_rms) + 2 * bytes_of(dgain)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    backward(dx.as<T>(), dgain.as<float>(), dy.as<T>(), x.as<T>(), gain.as<T>(),
             inv_rms.as<float>(), x.rows(), x.cols());
  });
}

}  // namespace lockstep::kernels::cpu
