#include "kernels/cpu/quantized_dots.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define LOCKSTEP_X86_VECTORS 1
#else
#define LOCKSTEP_X86_VECTORS 0
#endif

#include "kernels/cpu/simd.h"

// Vectors wider than the baseline's pass between functions here, all of them inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace lockstep::kernels::cpu {
namespace {

// kLanes words of a matrix, and what comes of them. add_products: sum[l] += a[2 l] * b[2 l] + a[2 l
// + 1] * b[2 l + 1], with signs. By a builtin, which, other than an intrinsic, may stand in a
// function that is inlined where the instruction is.
struct Baseline {
  static constexpr int64_t kLanes = 4;
  using Shorts = uint16_t __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  using Floats = float __attribute__((vector_size(16)));
  LOCKSTEP_INLINE static void add_products(Ints& sum, const Shorts& a, const Shorts& b) {
#if LOCKSTEP_X86_VECTORS
    sum += (Ints)__builtin_ia32_pmaddwd128((__v8hi)a, (__v8hi)b);
#else
    Ints products{};
    for (int64_t l = 0; l < kLanes; l++) {
      products[l] = static_cast<int16_t>(a[2 * l]) * static_cast<int16_t>(b[2 * l]) +
                    static_cast<int16_t>(a[2 * l + 1]) * static_cast<int16_t>(b[2 * l + 1]);
    }
    sum += products;
#endif
  }
};

#if LOCKSTEP_X86_VECTORS
struct Avx2 {
  static constexpr int64_t kLanes = 8;
  using Shorts = uint16_t __attribute__((vector_size(32)));
  using Ints = int32_t __attribute__((vector_size(32)));
  using Floats = float __attribute__((vector_size(32)));
  LOCKSTEP_INLINE static void add_products(Ints& sum, const Shorts& a, const Shorts& b) {
    sum += (Ints)__builtin_ia32_pmaddwd256((__v16hi)a, (__v16hi)b);
  }
};

struct Avx512 {
  static constexpr int64_t kLanes = 16;
  using Shorts = uint16_t __attribute__((vector_size(64)));
  using Ints = int32_t __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(64)));
  LOCKSTEP_INLINE static void add_products(Ints& sum, const Shorts& a, const Shorts& b) {
    const __v16si zero = {};
    sum += (Ints)__builtin_ia32_pmaddwd512_mask((__v32hi)a, (__v32hi)b, zero, (__mmask16)-1);
  }
};
#endif

// How the words of a block and vectors lie to each other: a step is the larger of both.
template <class V, int kBlockWords>
struct Step {
  static constexpr int64_t kVectors = std::max<int64_t>(1, kBlockWords / V::kLanes);
  static constexpr int64_t kBlocks = std::max<int64_t>(1, V::kLanes / kBlockWords);
};

// Number k of both halves of each word.
template <class V, int kBits>
LOCKSTEP_INLINE typename V::Shorts numbers(const typename V::Shorts& words, int k) {
  const typename V::Shorts shifted = words >> (kBits * k);
  return k == 16 / kBits - 1 ? shifted : shifted & static_cast<uint16_t>((1 << kBits) - 1);
}

// factors[l] = x[b] * w[b] for the block b of kBlocks whose word stands in lane l.
template <class V, int64_t kBlocks>
LOCKSTEP_INLINE typename V::Floats spread_factors(const float* x, const float* w) {
  if constexpr (kBlocks == 1) {
    return typename V::Floats{} + x[0] * w[0];
  } else {
    typename V::Floats a{}, b{};
    std::memcpy(&a, x, kBlocks * sizeof(float));
    std::memcpy(&b, w, kBlocks * sizeof(float));
    typename V::Ints places{};
    for (int64_t l = 0; l < V::kLanes; l++) places[l] = l / (V::kLanes / kBlocks);
    return __builtin_shuffle(a * b, places);
  }
}

template <class V, int kBits, int kBlockWords>
LOCKSTEP_INLINE void four_dots(float* out, const RoundedRow& x, const QuantizedRow* rows,
                               const QuantizedMatrix& weight) {
  using Shape = Step<V, kBlockWords>;
  constexpr int64_t kAhead = 16;  // vectors; beyond what the processor fetches by itself
  const int64_t steps = weight.words_of_row() / (Shape::kVectors * V::kLanes);
  const int64_t blocks_of_group = weight.words_of_group() / kBlockWords;
  const int16_t* numbers_of_x = x.numbers;
  const uint32_t* words[kDotRows];
  typename V::Floats sums[kDotRows];
#pragma GCC unroll 4
  for (int64_t j = 0; j < kDotRows; j++) words[j] = rows[j].words, sums[j] = typename V::Floats{};
  int64_t block = 0, group = 0, blocks_left = blocks_of_group;
  for (int64_t step = 0; step < steps; step++) {
    typename V::Ints products[kDotRows] = {};
#pragma GCC unroll 8
    for (int64_t v = 0; v < Shape::kVectors; v++) {
      typename V::Shorts packed[kDotRows];
#pragma GCC unroll 4
      for (int64_t j = 0; j < kDotRows; j++) {
        __builtin_prefetch(words[j] + kAhead * V::kLanes);
        std::memcpy(&packed[j], words[j], sizeof(packed[j]));
        words[j] += V::kLanes;
      }
#pragma GCC unroll 4
      for (int k = 0; k < 16 / kBits; k++) {
        typename V::Shorts r;
        std::memcpy(&r, numbers_of_x, sizeof(r));
        numbers_of_x += 2 * V::kLanes;
#pragma GCC unroll 4
        for (int64_t j = 0; j < kDotRows; j++) {
          V::add_products(products[j], numbers<V, kBits>(packed[j], k), r);
        }
      }
    }
#pragma GCC unroll 4
    for (int64_t j = 0; j < kDotRows; j++) {
      sums[j] += __builtin_convertvector(products[j], typename V::Floats) *
                 spread_factors<V, Shape::kBlocks>(x.scales + block, rows[j].scales + group);
    }
    block += Shape::kBlocks;
    blocks_left -= 1;
    if (blocks_left == 0) group += Shape::kBlocks, blocks_left = blocks_of_group;
  }
  for (int64_t j = 0; j < kDotRows; j++) {
    float zeros = 0;
#pragma omp simd reduction(+ : zeros)
    for (int64_t g = 0; g < weight.groups(); g++) {
      zeros += rows[j].scales[g] * static_cast<float>(rows[j].zeros[g]) * x.sums[g];
    }
    float lanes[V::kLanes], sum = 0;
    std::memcpy(lanes, &sums[j], sizeof(lanes));
#pragma omp simd reduction(+ : sum)
    for (int64_t l = 0; l < V::kLanes; l++) sum += lanes[l];
    out[j] = sum - zeros;
  }
}

// r, s and the sum of s * r of one block. NaN fails every comparison: it is looked for by one that
// it must pass.
LOCKSTEP_CLONES void round_block(int16_t* numbers, float* scale, float* sum, const float* x,
                                 int64_t n) {
  constexpr float kMost = 32767;
  float largest = 0;
  int finite = 1;
#pragma omp simd reduction(max : largest) reduction(& : finite)
  for (int64_t i = 0; i < n; i++) {
    const float size = std::abs(x[i]);
    largest = std::max(largest, size);
    finite &= size <= std::numeric_limits<float>::max();
  }
  // Below that 1 / s is no float any more, and s has lost digits.
  const bool vanishes = largest < kMost * std::numeric_limits<float>::min();
  const float inverse = finite && !vanishes ? kMost / largest : 0;
  constexpr float kToInteger = 3 << 22;  // added to |v| < 2^22, leaves v's integer as last bits
  int32_t total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; i++) {
    const float v = inverse == 0 ? 0 : x[i] * inverse;
    const int32_t r = std::bit_cast<int32_t>(v + kToInteger) - std::bit_cast<int32_t>(kToInteger);
    numbers[i] = static_cast<int16_t>(r);
    total += r;
  }
  *scale = !finite ? std::numeric_limits<float>::quiet_NaN() : vanishes ? 0 : largest / kMost;
  *sum = *scale * static_cast<float>(total);
}

// out[2 i] = low[i], out[2 i + 1] = high[i]
LOCKSTEP_CLONES void interleave(int16_t* out, const int16_t* low, const int16_t* high, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[2 * i] = low[i], out[2 * i + 1] = high[i];
}

// Rounds a row and puts r where four_dots unpacks its partner: both halves of a word are a pair.
template <class V, int kBits, int kBlockWords>
void round_row(const RoundedRow& out, const float* x, const QuantizedMatrix& weight) {
  constexpr int64_t kOfWord = 32 / kBits, kOfHalf = kOfWord / 2, kBlock = kOfWord * kBlockWords;
  constexpr int64_t kRun = std::min<int64_t>(V::kLanes, kBlockWords);
  const int64_t width = weight.words_of_group();
  std::fill_n(out.sums, weight.groups(), 0.0f);
  for (int64_t word = 0; word < weight.words_of_row(); word += kBlockWords) {
    const int64_t group = word / width;
    const float* x_of_block = x + group * weight.group_size + word % width;
    float values[kBlock], sum;
    int16_t numbers[kBlock];
    for (int64_t k = 0; k < kOfWord; k++) {
      std::copy_n(x_of_block + k * width, kBlockWords, values + k * kBlockWords);
    }
    round_block(numbers, out.scales + word / kBlockWords, &sum, values, kBlock);
    out.sums[group] += sum;
    for (int64_t j = 0; j < kBlockWords; j += kRun) {
      const int64_t vector = (word + j) / V::kLanes, lane = (word + j) % V::kLanes;
      for (int64_t k = 0; k < kOfHalf; k++) {
        const int16_t* low = numbers + k * kBlockWords + j;
        interleave(out.numbers + 2 * ((vector * kOfHalf + k) * V::kLanes + lane), low,
                   low + kOfHalf * kBlockWords, kRun);
      }
    }
  }
}

// four_dots, compiled for the instructions of V.
template <class V>
struct Compiled;

template <>
struct Compiled<Baseline> {
  template <int kBits, int kBlockWords>
  static void dots(float* out, const RoundedRow& x, const QuantizedRow* rows,
                   const QuantizedMatrix& weight) {
    four_dots<Baseline, kBits, kBlockWords>(out, x, rows, weight);
  }
};

#if LOCKSTEP_X86_VECTORS
template <>
struct Compiled<Avx2> {
  template <int kBits, int kBlockWords>
  __attribute__((target("avx2,fma"))) static void dots(float* out, const RoundedRow& x,
                                                       const QuantizedRow* rows,
                                                       const QuantizedMatrix& weight) {
    four_dots<Avx2, kBits, kBlockWords>(out, x, rows, weight);
  }
};

template <>
struct Compiled<Avx512> {
  template <int kBits, int kBlockWords>
  __attribute__((target("avx512bw,avx512vl,fma"))) static void dots(float* out, const RoundedRow& x,
                                                                    const QuantizedRow* rows,
                                                                    const QuantizedMatrix& weight) {
    four_dots<Avx512, kBits, kBlockWords>(out, x, rows, weight);
  }
};
#endif

template <class V, int kBits, int kBlockWords>
QuantizedDots functions() {
  return {round_row<V, kBits, kBlockWords>, Compiled<V>::template dots<kBits, kBlockWords>};
}

template <class V>
QuantizedDots functions_for(const QuantizedMatrix& weight) {
  const int64_t inputs = std::min(kQuantizedBlock, weight.group_size);
  if (weight.bits == 8) {
    return inputs == 32   ? functions<V, 8, 8>()
           : inputs == 64 ? functions<V, 8, 16>()
                          : functions<V, 8, 32>();
  }
  return inputs == 32   ? functions<V, 4, 4>()
         : inputs == 64 ? functions<V, 4, 8>()
                        : functions<V, 4, 16>();
}

}  // namespace

QuantizedDots quantized_dots_for(const QuantizedMatrix& weight, [[maybe_unused]] int64_t lanes) {
#if LOCKSTEP_X86_VECTORS
  const auto fits = [&](int64_t of_machine) {
    return of_machine <= lanes && weight.words_of_row() % of_machine == 0;
  };
  if (fits(Avx512::kLanes) && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return functions_for<Avx512>(weight);
  }
  if (fits(Avx2::kLanes) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return functions_for<Avx2>(weight);
  }
#endif
  return functions_for<Baseline>(weight);
}

}  // namespace lockstep::kernels::cpu
