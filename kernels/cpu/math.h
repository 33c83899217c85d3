#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "kernels/cpu/simd.h"

// Elementary functions of fp32 without branches or tables, so that loops over them vectorise. All
// are defined for every argument: infinities give the limit, NaN gives NaN, results too large or
// too small round to infinity, to subnormals or to zero. Errors are in units in the last place of
// the exact result, over all arguments (tests/kernels/math_test.cpp measures them).
//
// Polynomials are minimax fits, by reweighted least squares on Chebyshev points.
namespace lockstep::kernels::cpu::math {

namespace detail {

LOCKSTEP_INLINE float magnitude(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7fffffffu);
}
LOCKSTEP_INLINE float with_sign_of(float magnitude, float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) |
                              (std::bit_cast<uint32_t>(x) & 0x80000000u));
}
LOCKSTEP_INLINE float clamp(float x, float low, float high) {  // keeps NaN
  x = x < low ? low : x;
  return x > high ? high : x;
}

// 2^n for n in [-126, 127].
LOCKSTEP_INLINE float power_of_two(int32_t n) {
  return std::bit_cast<float>(static_cast<uint32_t>(n + 127) << 23);
}

// x = n ln 2 + r with |r| <= ln 2 / 2, and expm1 = e^r - 1. |x| < 2^7.
struct Reduced {
  int32_t n;
  float expm1;
};
LOCKSTEP_INLINE Reduced reduce(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  // ln 2 in two parts, the first of 15 bits: n times it is exact.
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float q = 1.3944660e-3f + r * 1.9790346e-4f;
  q = 8.3334967e-3f + r * q;
  q = 4.1666295e-2f + r * q;
  q = 1.6666667e-1f + r * q;
  q = 0.5f + r * q;
  const int32_t exponent =
      static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound));
  return {exponent, r + r * r * q};
}

}  // namespace detail

// Within 1.5 ulp.
LOCKSTEP_INLINE float exp(float x) {
  const auto [n, expm1] = detail::reduce(detail::clamp(x, -104.0f, 89.0f));
  // In two steps, because 2^n itself may be beyond fp32. The arithmetic shift halves.
  const int32_t half = n >> 1;
  return (1.0f + expm1) * detail::power_of_two(half) * detail::power_of_two(n - half);
}

// e^x for x <= 88, and 0 for x < -87, where e^x nears the end of the normal range: for softmax, at
// half the price of exp. Within 1.5 ulp.
LOCKSTEP_INLINE float exp_of_negative(float x) {
  const auto [n, expm1] = detail::reduce(x);
  const float value = (1.0f + expm1) * detail::power_of_two(n);
  return x < -87.0f ? 0.0f : value;
}

// Within 3 ulp.
LOCKSTEP_INLINE float tanh(float x) {
  // tanh |x| = (e^2|x| - 1) / (e^2|x| - 1 + 2); from |x| = 10 on it rounds to 1.
  const auto [n, expm1] = detail::reduce(detail::clamp(2.0f * detail::magnitude(x), 0.0f, 20.0f));
  const float scale = detail::power_of_two(n);
  const float e = scale * expm1 + (scale - 1.0f);
  return detail::with_sign_of(e / (e + 2.0f), x);
}

// 1 / (1 + e^-x). Within 3 ulp.
LOCKSTEP_INLINE float sigmoid(float x) {
  const float e = exp(-detail::magnitude(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

namespace detail {

// erfc(t) / e^(-t^2) for t in [0, 10.2], as w P(w) with w = 1 / (1 + 0.4 t); relative error 7e-8,
// and a few roundings.
LOCKSTEP_INLINE float scaled_erfc(float t) {
  const float w = 1.0f / (1.0f + 0.4f * t);
  float p = -1.4208183e-1f + w * 4.1612893e-2f;
  p = 8.7657347e-2f + w * p;
  p = 8.3732627e-2f + w * p;
  p = 8.2703412e-2f + w * p;
  p = 1.9212767e-1f + w * p;
  p = 2.0221396e-1f + w * p;
  p = 2.2639702e-1f + w * p;
  p = 2.2563696e-1f + w * p;
  return w * p;
}

}  // namespace detail

// Within 2 ulp.
LOCKSTEP_INLINE float erf(float x) {
  const float t = detail::magnitude(x);
  const float s = t * t;
  float small = 4.9675060e-3f + s * -5.8620796e-4f;
  small = -2.6748864e-2f + s * small;
  small = 1.1281320e-1f + s * small;
  small = -3.7612447e-1f + s * small;
  small = 1.2837914e-1f + s * small;
  small = t + t * small;
  const float u = detail::clamp(t, 0.0f, 10.0f);
  const float large = 1.0f - exp(-(u * u)) * detail::scaled_erfc(u);
  return detail::with_sign_of(t < 0.94f ? small : large, x);
}

// The normal distribution: cumulative = (1 + erf(x / sqrt 2)) / 2 and density = e^(-x^2/2) /
// sqrt(2 pi). Within 2^-22 of the exact value, and relative to it within 2^-21 (1 + x^2 / 4).
struct Normal {
  float cumulative, density;
};
LOCKSTEP_INLINE Normal normal(float x) {
  const float t = detail::clamp(detail::magnitude(x) * 0.707106781f, 0.0f, 10.2f);
  const float e = exp(-0.5f * (x * x));
  const float tail = 0.5f * e * detail::scaled_erfc(t);
  return {x < 0.0f ? tail : 1.0f - tail, 0.398942280f * e};
}

}  // namespace lockstep::kernels::cpu::math
