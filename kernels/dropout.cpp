#include "kernels/dropout.h"

#include <algorithm>

#include "core/profile.h"
#include "kernels/cpu/dropout_factors.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

constexpr int64_t kQuads = 256;  // made at a time, so that they stay in the first-level cache

template <class T>
LOCKSTEP_CLONES void scale_run(T* out, const T* x, const float* factors, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<T>(to_float(x[i]) * factors[i]);
}

template <class T>
LOCKSTEP_CLONES void add_scaled_run(T* out, const T* residual, const T* x, const float* factors,
                                    int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    out[i] = from_float<T>(to_float(residual[i]) + to_float(x[i]) * factors[i]);
  }
}

// Calls body(offset, count, factors) for runs of at most 4 * kQuads elements that cover x.
template <class Body>
void for_masked_runs(const Tensor& x, const DropoutMask& mask, Body body) {
  const int64_t sequences = x.dim(0);
  const int64_t length = sequences == 0 ? 0 : x.size() / sequences;
  const int64_t runs = (length + 4 * kQuads - 1) / (4 * kQuads);
  parallel_for(sequences * runs, 16, [&](int64_t begin, int64_t end) {
    alignas(64) float factors[4 * kQuads];
    for (int64_t k = begin; k < end; k++) {
      const int64_t sequence = k / runs, run = k % runs, first = run * 4 * kQuads;
      dropout_factors(factors, mask, sequence, run * kQuads, kQuads);
      body(sequence * length + first, std::min(4 * kQuads, length - first), factors);
    }
  });
}

}  // namespace

void dropout(const Tensor& out, const Tensor& x, const DropoutMask& mask, Stream&) {
  CHECK(out.size() == x.size() && x.shape().rank() > 0);
  const ProfileScope scope({"dropout", bytes_of(out, x)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (!mask.active()) {
      if (out.data() != x.data()) std::copy_n(x.as<T>(), x.size(), out.as<T>());
      return;
    }
    for_masked_runs(x, mask, [&](int64_t offset, int64_t count, const float* factors) {
      scale_run(out.as<T>() + offset, x.as<T>() + offset, factors, count);
    });
  });
}

void residual_add(const Tensor& out, const Tensor& residual, const Tensor& x,
                  const DropoutMask& mask, Stream&) {
  CHECK(out.size() == x.size() && residual.size() == x.size() && x.shape().rank() > 0);
  const ProfileScope scope({"residual_add", bytes_of(out, residual, x)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (!mask.active()) {
      parallel_for(x.size(), kElementGrain, [&](int64_t begin, int64_t end) {
        add_run(out.as<T>() + begin, residual.as<T>() + begin, x.as<T>() + begin, end - begin);
      });
      return;
    }
    for_masked_runs(x, mask, [&](int64_t offset, int64_t count, const float* factors) {
      add_scaled_run(out.as<T>() + offset, residual.as<T>() + offset, x.as<T>() + offset, factors,
                     count);
    });
  });
}

}  // namespace lockstep::kernels::cpu
