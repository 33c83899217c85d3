#include "kernels/quantized_matmul.h"

#include <algorithm>
#include <bit>

#include "core/thread_pool.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels {
namespace {

// Calls f(output's word w of its group g, k, the input that stands there).
template <class F>
void for_places(const QuantizedMatrix& m, F f) {
  const int64_t width = m.words_of_group();
  for (int64_t g = 0; g < m.groups(); g++) {
    for (int64_t j = 0; j < width; j++) {
      for (int k = 0; k < 32 / m.bits; k++) {
        f(g * width + j, k * m.bits, g * m.group_size + k * width + j);
      }
    }
  }
}

}  // namespace

void pack_row(const QuantizedMatrix& weight, int64_t output, const uint8_t* q) {
  uint32_t* words = weight.words + output * weight.words_of_row();
  std::fill_n(words, weight.words_of_row(), 0u);
  for_places(weight, [&](int64_t word, int shift, int64_t input) {
    words[word] |= uint32_t{q[input]} << shift;
  });
}

void unpack_row(const QuantizedMatrix& weight, int64_t output, uint8_t* q) {
  const uint32_t* words = weight.words + output * weight.words_of_row();
  const uint32_t mask = (1u << weight.bits) - 1;
  for_places(weight, [&](int64_t word, int shift, int64_t input) {
    q[input] = static_cast<uint8_t>(words[word] >> shift & mask);
  });
}

namespace cpu {
namespace {

constexpr int64_t kOutputs = 4;  // at a time: hides the latency of addition

// A row of the weight.
struct QuantizedRow {
  const uint32_t* words;
  const float* scales;
  const uint8_t* zeros;
};

// What the product needs of x, computed once a row.
struct PreparedInputs {
  float* values;  // (N, I)
  float* starts;  // (N, I * bits / 32): of each word, the sum of -offset * x over its inputs
  float* sums;    // (N, I / group_size): of x over each group
};

// Number k of a word becomes a float without a conversion: the byte that it stands in is shifted to
// the upper end of a float's fraction, all else is masked out, and an exponent put in front makes
// it offset + q. The sums begin with `starts`, which takes the offsets out again.
template <int kBits>
struct Place {
  int byte;
  bool upper_half;  // of the byte

  constexpr explicit Place(int k) : byte(k * kBits / 8), upper_half(kBits == 4 && k % 2 == 1) {}
  constexpr float offset() const { return upper_half ? 16.0f : 256.0f; }
  constexpr uint32_t mask() const {
    return kBits == 8 ? 0xffu << 15 : upper_half ? 0xfu << 19 : 0xfu << 15;
  }
};

template <int kBits>
LOCKSTEP_INLINE float number(uint32_t word, int k) {
  const Place<kBits> place(k);
  const int left = 15 - 8 * place.byte;
  const uint32_t shifted = left > 0 ? word << left : word >> -left;
  return std::bit_cast<float>((shifted & place.mask()) | std::bit_cast<uint32_t>(place.offset()));
}

// sums[j][l] = sum of scale * x * q over the words l, l + kLanes, ... of row j.
template <int kBits, int kLanes>
LOCKSTEP_CLONES void lane_sums(float (*sums)[kLanes], const float* x, const float* starts,
                               const QuantizedRow* rows, int64_t groups, int64_t width) {
  constexpr int kNumbers = 32 / kBits;
  const uint32_t *a = rows[0].words, *b = rows[1].words, *c = rows[2].words, *d = rows[3].words;
  const int64_t ahead = kOutputs * groups * width;  // where the next rows stand
  for (int64_t g = 0; g < groups; g++, x += width * kNumbers) {
    const float scales[kOutputs] = {rows[0].scales[g], rows[1].scales[g], rows[2].scales[g],
                                    rows[3].scales[g]};
    for (int64_t j = 0; j < width; j += kLanes) {
      __builtin_prefetch(a + ahead);
      __builtin_prefetch(b + ahead);
      __builtin_prefetch(c + ahead);
      __builtin_prefetch(d + ahead);
#pragma omp simd
      for (int l = 0; l < kLanes; l++) {
        float s0 = starts[l], s1 = starts[l], s2 = starts[l], s3 = starts[l];
#pragma GCC unroll 8
        for (int k = 0; k < kNumbers; k++) {
          const float v = x[k * width + j + l];
          s0 += v * number<kBits>(a[l], k);
          s1 += v * number<kBits>(b[l], k);
          s2 += v * number<kBits>(c[l], k);
          s3 += v * number<kBits>(d[l], k);
        }
        sums[0][l] += scales[0] * s0;
        sums[1][l] += scales[1] * s1;
        sums[2][l] += scales[2] * s2;
        sums[3][l] += scales[3] * s3;
      }
      a += kLanes, b += kLanes, c += kLanes, d += kLanes, starts += kLanes;
    }
  }
}

// sums[j][l] -= scale * zero * (sum of x) over the groups l, l + kLanes, ... of row j.
template <int kLanes>
LOCKSTEP_CLONES void subtract_zeros(float (*sums)[kLanes], const float* group_sums,
                                    const QuantizedRow* rows, int64_t groups) {
  for (int64_t j = 0; j < kOutputs; j++) {
    const auto [words, scales, zeros] = rows[j];
    int64_t g = 0;
    for (; g + kLanes <= groups; g += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; l++) {
        sums[j][l] -= scales[g + l] * static_cast<float>(zeros[g + l]) * group_sums[g + l];
      }
    }
    for (int l = 0; g + l < groups; l++) {
      sums[j][l] -= scales[g + l] * static_cast<float>(zeros[g + l]) * group_sums[g + l];
    }
  }
}

// out[j] = x . row j, for four rows.
template <int kBits, int kLanes>
void four_dots(float* out, const PreparedInputs& x, const QuantizedRow* rows, int64_t groups,
               int64_t width) {
  float sums[kOutputs][kLanes] = {};
  lane_sums<kBits, kLanes>(sums, x.values, x.starts, rows, groups, width);
  subtract_zeros<kLanes>(sums, x.sums, rows, groups);
  for (int64_t j = 0; j < kOutputs; j++) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; l++) sums[j][l] += sums[j][l + half];
    }
    out[j] = sums[j][0];
  }
}

using FourDots = void (*)(float*, const PreparedInputs&, const QuantizedRow*, int64_t, int64_t);

FourDots four_dots_for(const QuantizedMatrix& weight) {
  if (weight.bits == 8) return weight.words_of_group() == 8 ? four_dots<8, 8> : four_dots<8, 16>;
  if (weight.words_of_group() == 4) return four_dots<4, 4>;
  return weight.words_of_group() == 8 ? four_dots<4, 8> : four_dots<4, 16>;
}

LOCKSTEP_CLONES void subtract(float* out, float factor, const float* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] -= factor * x[i];
}

LOCKSTEP_CLONES float sum(const float* x, int64_t n) {
  return sum_terms(n, [&](int64_t i) { return x[i]; });
}

// Of row n alone.
PreparedInputs row_of(const PreparedInputs& x, int64_t n, const QuantizedMatrix& weight) {
  return {x.values + n * weight.inputs, x.starts + n * weight.words_of_row(),
          x.sums + n * weight.groups()};
}

template <class T>
void prepare_row(const PreparedInputs& out, const T* x, const QuantizedMatrix& weight) {
  const int64_t width = weight.words_of_group();
  widen(out.values, x, weight.inputs);
  std::fill_n(out.starts, weight.words_of_row(), 0.0f);
  for (int64_t g = 0; g < weight.groups(); g++) {
    const float* values = out.values + g * weight.group_size;
    out.sums[g] = sum(values, weight.group_size);
    for (int k = 0; k < 32 / weight.bits; k++) {
      const float offset = weight.bits == 8 ? Place<8>(k).offset() : Place<4>(k).offset();
      subtract(out.starts + g * width, offset, values + k * width, width);
    }
  }
}

template <class T>
PreparedInputs prepare(const QuantizedMatrix& weight, const Tensor& x) {
  static thread_local Scratch values, starts, sums;
  const PreparedInputs prepared{values.get<float>(x.size()),
                                starts.get<float>(x.rows() * weight.words_of_row()),
                                sums.get<float>(x.rows() * weight.groups())};
  parallel_for(x.rows(), 1, [&](int64_t n, int64_t) {
    prepare_row(row_of(prepared, n, weight), x.as<T>() + n * weight.inputs, weight);
  });
  return prepared;
}

template <class T>
void forward(T* y, const PreparedInputs& x, int64_t rows, const QuantizedMatrix& weight,
             const T* bias) {
  constexpr int64_t kTask = 16;  // outputs: their weights stay in the cache from row to row
  const FourDots dots = four_dots_for(weight);
  parallel_for(weight.outputs, kTask, [&](int64_t first, int64_t end) {
    for (int64_t n = 0; n < rows; n++) {
      float sums[kTask];
      for (int64_t o = first; o < end; o += kOutputs) {
        QuantizedRow four[kOutputs];  // short at the end: the last row several times
        for (int64_t j = 0; j < kOutputs; j++) {
          const int64_t row = std::min(o + j, weight.outputs - 1);
          four[j] = {weight.words + row * weight.words_of_row(),
                     weight.scales + row * weight.groups(), weight.zeros + row * weight.groups()};
        }
        dots(sums + (o - first), row_of(x, n, weight), four, weight.groups(),
             weight.words_of_group());
      }
      for (int64_t o = first; bias != nullptr && o < end; o++) sums[o - first] += to_float(bias[o]);
      narrow(y + n * weight.outputs + first, sums, end - first);
    }
  });
}

}  // namespace

void quantized_linear_forward(const Tensor& y, const Tensor& x, const QuantizedMatrix& weight,
                              const Tensor& bias, Stream& stream) {
  CHECK(stream.device() == Device::cpu);
  CHECK(x.rows() == y.rows() && x.cols() == weight.inputs && y.cols() == weight.outputs,
        "{} = {} x ({}, {})", y.shape().to_string(), x.shape().to_string(), weight.outputs,
        weight.inputs);
  CHECK(weight.bits == 8 || weight.bits == 4, "{} bits", weight.bits);
  CHECK(is_group_size(weight.group_size) && weight.inputs % weight.group_size == 0,
        "groups of {} in {} inputs", weight.group_size, weight.inputs);
  CHECK(x.dtype() == y.dtype());
  CHECK(bias.empty() || (bias.size() == weight.outputs && bias.dtype() == x.dtype()));
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward(y.as<T>(), prepare<T>(weight, x), x.rows(), weight,
            bias.empty() ? nullptr : bias.as<T>());
  });
}

}  // namespace cpu
}  // namespace lockstep::kernels
