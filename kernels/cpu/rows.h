#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "kernels/cpu/simd.h"

// What kernels that go over rows or over flat runs of elements share.
namespace lockstep::kernels::cpu {

inline constexpr int64_t kElementGrain = 1 << 14;  // elements a task
inline constexpr int64_t kRowGrain = 16;           // rows a task
inline constexpr int64_t kRowBlock = 64;           // rows added up before blocks are joined

// sum of term(i) for i < n, in an order that depends on n and on the machine's vector width. Four
// sums at a time, each of a quarter of the terms, hide the latency of addition.
template <class Number = float, class Term>
LOCKSTEP_INLINE Number sum_terms(int64_t n, Term term) {
  const int64_t quarter = n / 4;
  Number a = 0, b = 0, c = 0, d = 0, rest = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < quarter; i++) {
    a += term(i);
    b += term(quarter + i);
    c += term(2 * quarter + i);
    d += term(3 * quarter + i);
  }
  for (int64_t i = 4 * quarter; i < n; i++) rest += term(i);
  return ((a + b) + (c + d)) + rest;
}

struct Pair {
  float first, second;
};

// Both sums of the pairs term(i) for i < n, likewise, by halves.
template <class Term>
LOCKSTEP_INLINE Pair sum_pairs(int64_t n, Term term) {
  const int64_t half = n / 2;
  float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < half; i++) {
    const Pair low = term(i), high = term(half + i);
    a += low.first, b += high.first;
    c += low.second, d += high.second;
  }
  const Pair rest = n % 2 == 1 ? term(n - 1) : Pair{0, 0};
  return {(a + b) + rest.first, (c + d) + rest.second};
}

// Partial sums over blocks of kRowBlock rows, one row of `columns` floats a block; each block is
// filled by one thread, and they are added up in order. Lives until the thread that made it makes
// another.
class RowPartials {
 public:
  RowPartials(int64_t rows, int64_t columns);
  float* block(int64_t first_row) const { return data_ + first_row / kRowBlock * columns_; }
  // out[c] += sum over blocks of column first + c, for c < count.
  void add_to(float* out, int64_t first, int64_t count) const;

 private:
  float* data_;
  int64_t blocks_, columns_;
};

// out = a + b, rounded to T; out may be a or b.
template <class T>
void add_run(T* out, const T* a, const T* b, int64_t n);

// The two conversions in bulk.
template <class T>
void widen(float* out, const T* in, int64_t n);
template <class T>
void narrow(T* out, const float* in, int64_t n);  // to nearest, ties to even

}  // namespace lockstep::kernels::cpu
