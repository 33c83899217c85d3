#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {
namespace {

// Sixteen bytes of elements, as integers: copies do not care what they mean.
template <int kBytes>
struct Lanes {
  using Element = std::conditional_t<kBytes == 4, uint32_t, uint16_t>;
  static constexpr int kCount = 16 / kBytes;
  typedef Element Vector __attribute__((vector_size(16)));
};

template <class Vector>
LOCKSTEP_INLINE Vector interleave_low(Vector a, Vector b) {
  if constexpr (sizeof(a[0]) == 4)
    return __builtin_shuffle(a, b, Vector{0, 4, 1, 5});
  else
    return __builtin_shuffle(a, b, Vector{0, 8, 1, 9, 2, 10, 3, 11});
}
template <class Vector>
LOCKSTEP_INLINE Vector interleave_high(Vector a, Vector b) {
  if constexpr (sizeof(a[0]) == 4)
    return __builtin_shuffle(a, b, Vector{2, 6, 3, 7});
  else
    return __builtin_shuffle(a, b, Vector{4, 12, 5, 13, 6, 14, 7, 15});
}

// A square of as many rows as a vector has lanes: interleaving its halves log2(lanes) times.
template <int kBytes>
LOCKSTEP_INLINE void transpose_square(char* out, int64_t out_stride, const char* in,
                                      int64_t in_stride) {
  constexpr int kCount = Lanes<kBytes>::kCount;
  using Vector = typename Lanes<kBytes>::Vector;
  Vector rows[kCount];
  for (int i = 0; i < kCount; i++) std::memcpy(&rows[i], in + i * in_stride, sizeof(Vector));
  for (int stage = 1; stage < kCount; stage *= 2) {
    Vector next[kCount];
    for (int i = 0; i < kCount / 2; i++) {
      next[2 * i] = interleave_low(rows[i], rows[i + kCount / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kCount / 2]);
    }
    for (int i = 0; i < kCount; i++) rows[i] = next[i];
  }
  for (int i = 0; i < kCount; i++) std::memcpy(out + i * out_stride, &rows[i], sizeof(Vector));
}

template <class T>
void transpose(T* out, const T* in, int64_t stride, int64_t rows, int64_t cols) {
  constexpr int kBytes = sizeof(T), kSide = Lanes<kBytes>::kCount;
  constexpr int64_t kLine = 64 / kBytes;  // a cache line of each row is read whole
  const int64_t whole_rows = rows / kSide * kSide, whole_cols = cols / kSide * kSide;
  for (int64_t line = 0; line < whole_cols; line += kLine) {
    for (int64_t r = 0; r < whole_rows; r += kSide) {
      for (int64_t c = line; c < std::min(line + kLine, whole_cols); c += kSide) {
        transpose_square<kBytes>(reinterpret_cast<char*>(out + c * rows + r), rows * kBytes,
                                 reinterpret_cast<const char*>(in + r * stride + c),
                                 stride * kBytes);
      }
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; c++) {
      out[c * rows + r] = in[r * stride + c];
    }
  }
}

}  // namespace

template <class P, class T>
void pack(P* out, const T* in, int64_t stride, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; r++) {
    if constexpr (std::is_same_v<P, T>) {
      std::copy_n(in + r * stride, cols, out + r * cols);
    } else {
      widen(out + r * cols, in + r * stride, cols);
    }
  }
}

template <class P, class T>
void pack_transposed(P* out, const T* in, int64_t stride, int64_t rows, int64_t cols) {
  if constexpr (std::is_same_v<P, T>) {
    transpose(out, in, stride, rows, cols);
  } else {
    static thread_local Scratch scratch;
    P* wide = scratch.get<P>(rows * cols);
    pack(wide, in, stride, rows, cols);
    transpose(out, wide, cols, rows, cols);
  }
}

#define LOCKSTEP_INSTANTIATE(P, T)                             \
  template void pack(P*, const T*, int64_t, int64_t, int64_t); \
  template void pack_transposed(P*, const T*, int64_t, int64_t, int64_t);
LOCKSTEP_INSTANTIATE(float, float)
LOCKSTEP_INSTANTIATE(bf16, bf16)
LOCKSTEP_INSTANTIATE(fp16, fp16)
LOCKSTEP_INSTANTIATE(float, bf16)
LOCKSTEP_INSTANTIATE(float, fp16)
#undef LOCKSTEP_INSTANTIATE

}  // namespace lockstep::kernels::cpu
