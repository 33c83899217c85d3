#include "kernels/cpu/gemm_fp32.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/range.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {
namespace {

// A register of kLanes floats, and the same at any address.
template <int kLanes>
struct Lanes;
#define LOCKSTEP_LANES(count)                                                              \
  template <>                                                                              \
  struct Lanes<count> {                                                                    \
    typedef float Vector __attribute__((vector_size(4 * count)));                          \
    typedef float InMemory __attribute__((vector_size(4 * count), aligned(4), may_alias)); \
  };
LOCKSTEP_LANES(4)
LOCKSTEP_LANES(8)
LOCKSTEP_LANES(16)
#undef LOCKSTEP_LANES

// Where a tile of a product begins.
struct Place {
  const float *a, *b;
  float* c;
};

// kRows rows and kVectors vectors of columns of C.
template <int kLanes, int kRows, int kVectors>
LOCKSTEP_INLINE void multiply_tile(const GemmFp32& g, const Place& place) {
  using Vector = typename Lanes<kLanes>::Vector;
  using InMemory = typename Lanes<kLanes>::InMemory;
  Vector sums[kRows][kVectors] = {};
  const float *a = place.a, *b = place.b;
  const int64_t a_row = g.a_row, a_column = g.a_column, b_stride = g.b_stride, k = g.k;
  for (int64_t l = 0; l < k; l++, a += a_column, b += b_stride) {
    Vector row[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) row[v] = *reinterpret_cast<const InMemory*>(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      const float x = a[r * a_row];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) sums[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; v++) {
      InMemory& out = *reinterpret_cast<InMemory*>(place.c + r * g.c_stride + v * kLanes);
      Vector sum = sums[r][v];
      if (g.accumulate) sum += out;
      out = sum;
    }
  }
}

// An instruction set: the floats of a register, and the most rows and vectors of a tile whose sums
// fit the registers beside a row of B and an element of A.
#define LOCKSTEP_INSTRUCTION_SET(Name, kLanesOf, kRowsOf, kVectorsOf, ...)          \
  struct Name {                                                                     \
    static constexpr int kLanes = kLanesOf, kRows = kRowsOf, kVectors = kVectorsOf; \
    template <int kTileRows, int kTileVectors>                                      \
    __VA_ARGS__ static void tile(const GemmFp32& g, const Place& place) {           \
      multiply_tile<kLanes, kTileRows, kTileVectors>(g, place);                     \
    }                                                                               \
  };
#if defined(__x86_64__) && defined(__GNUC__)
LOCKSTEP_INSTRUCTION_SET(Avx512, 16, 8, 3, __attribute__((target("arch=x86-64-v4"))))
LOCKSTEP_INSTRUCTION_SET(Avx2, 8, 6, 2, __attribute__((target("arch=x86-64-v3"))))
#endif
LOCKSTEP_INSTRUCTION_SET(Baseline, 4, 4, 2, )
#undef LOCKSTEP_INSTRUCTION_SET

using Tile = void (*)(const GemmFp32&, const Place&);

template <class Set, int kRows, int... kVectors>
constexpr auto tiles_of_rows(std::integer_sequence<int, kVectors...>) {
  return std::array<Tile, Set::kVectors>{&Set::template tile<kRows, kVectors + 1>...};
}
template <class Set, int... kRows>
constexpr auto tiles(std::integer_sequence<int, kRows...>) {
  return std::array{
      tiles_of_rows<Set, kRows + 1>(std::make_integer_sequence<int, Set::kVectors>())...};
}
// kTiles<Set>[rows - 1][vectors - 1]
template <class Set>
constexpr auto kTiles = tiles<Set>(std::make_integer_sequence<int, Set::kRows>());

// The columns of C that fill whole vectors: as many side by side as a tile has, through all rows.
// Tiles are of nearly equal width, because a narrow one costs more for each column.
template <class Set>
void multiply_whole_vectors(const GemmFp32& g) {
  const int64_t vectors = g.n / Set::kLanes, count = pieces(vectors, Set::kVectors);
  for (int64_t piece = 0, column = 0; piece < count; piece++) {
    const int64_t width = vectors / count + (piece < vectors % count);
    for (int64_t row = 0; row < g.m; row += Set::kRows) {
      const int64_t rows = std::min<int64_t>(Set::kRows, g.m - row);
      kTiles<Set>[rows - 1][width - 1](
          g, {g.a + row * g.a_row, g.b + column, g.c + row * g.c_stride + column});
    }
    column += width * Set::kLanes;
  }
}

void copy(float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t rows,
          int64_t columns) {
  for (int64_t r = 0; r < rows; r++) {
    std::copy_n(from + r * from_stride, columns, to + r * to_stride);
  }
}

template <class Set>
void multiply(const GemmFp32& g) {
  multiply_whole_vectors<Set>(g);
  const int64_t left = g.n % Set::kLanes, done = g.n - left;
  if (left == 0) return;
  // The last columns, in copies that fill a vector.
  static thread_local Scratch scratch;
  float* b = scratch.get<float>((g.k + g.m) * Set::kLanes);
  float* c = b + g.k * Set::kLanes;
  std::fill_n(b, (g.k + g.m) * Set::kLanes, 0.0f);
  copy(b, Set::kLanes, g.b + done, g.b_stride, g.k, left);
  if (g.accumulate) copy(c, Set::kLanes, g.c + done, g.c_stride, g.m, left);
  GemmFp32 filled = g;
  filled.n = filled.b_stride = filled.c_stride = Set::kLanes;
  filled.b = b, filled.c = c;
  multiply_whole_vectors<Set>(filled);
  copy(g.c + done, g.c_stride, c, Set::kLanes, g.m, left);
}

}  // namespace

std::span<const GemmFp32Function> gemm_fp32_functions() {
  static const std::vector<GemmFp32Function> functions = [] {
    std::vector<GemmFp32Function> all;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) all.push_back(multiply<Avx512>);
    if (__builtin_cpu_supports("x86-64-v3")) all.push_back(multiply<Avx2>);
#endif
    all.push_back(multiply<Baseline>);
    return all;
  }();
  return functions;
}

void gemm_fp32(const GemmFp32& product) {
  static const auto function = gemm_fp32_functions().front();
  function(product);
}

}  // namespace lockstep::kernels::cpu
