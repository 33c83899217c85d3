#include "kernels/cpu/rows.h"

#include <algorithm>
#include <vector>

#include "core/range.h"

namespace lockstep::kernels::cpu {
namespace {

constexpr int64_t kColumnGrain = 256;

LOCKSTEP_CLONES void add(float* out, const float* in, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] += in[i];
}

template <class T>
LOCKSTEP_CLONES void widen_run(float* out, const T* in, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = to_float(in[i]);
}

template <class T>
LOCKSTEP_CLONES void narrow_run(T* out, const float* in, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<T>(in[i]);
}

template <class T>
LOCKSTEP_CLONES void add_rounded(T* out, const T* a, const T* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

}  // namespace

RowPartials::RowPartials(int64_t rows, int64_t columns)
    : blocks_(pieces(rows, kRowBlock)), columns_(columns) {
  thread_local std::vector<float> memory;
  if (memory.size() < static_cast<size_t>(blocks_ * columns_)) memory.resize(blocks_ * columns_);
  data_ = memory.data();
}

void RowPartials::add_to(float* out, int64_t first, int64_t count) const {
  parallel_for(count, kColumnGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < blocks_; k++) {
      add(out + begin, data_ + k * columns_ + first + begin, end - begin);
    }
  });
}

template <class T>
void add_run(T* out, const T* a, const T* b, int64_t n) {
  add_rounded(out, a, b, n);
}
template void add_run(float*, const float*, const float*, int64_t);
template void add_run(bf16*, const bf16*, const bf16*, int64_t);
template void add_run(fp16*, const fp16*, const fp16*, int64_t);

template <class T>
void widen(float* out, const T* in, int64_t n) {
  widen_run(out, in, n);
}
template <class T>
void narrow(T* out, const float* in, int64_t n) {
  narrow_run(out, in, n);
}
template void widen(float*, const float*, int64_t);
template void widen(float*, const bf16*, int64_t);
template void widen(float*, const fp16*, int64_t);
template void narrow(float*, const float*, int64_t);
template void narrow(bf16*, const float*, int64_t);
template void narrow(fp16*, const float*, int64_t);

}  // namespace lockstep::kernels::cpu
