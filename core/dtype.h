#pragma once
#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/check.h"

// Element types. bf16 and fp16 are storage only: arithmetic is done in fp32.
namespace lockstep {

enum class DType { fp32, bf16, fp16, int32 };

struct bf16 {
  uint16_t bits = 0;
};
struct fp16 {
  uint16_t bits = 0;
};

namespace detail {
template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace detail

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return detail::bits_as<float>(uint32_t{x.bits} << 16); }

// Exact, subnormals, infinities and NaNs included; without branches, so that loops vectorise.
inline float to_float(fp16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  // Scaling by 2^112 moves fp16's exponent bias to fp32's and normalises subnormals.
  const float scaled = detail::bits_as<float>(magnitude) * 5.192296858534828e+33f;
  const uint32_t finite = detail::bits_as<uint32_t>(scaled);
  const uint32_t special = magnitude | 0x7f800000u;
  return detail::bits_as<float>(sign | (magnitude >= 0x0f800000u ? special : finite));
}

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

// To nearest, ties to even; NaN stays NaN.
template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t u = detail::bits_as<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : rounded)};
}

// To nearest, ties to even; beyond 65504 (rounded) infinity; NaN stays NaN.
template <>
inline fp16 from_float<fp16>(float x) {
  const uint32_t u = detail::bits_as<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  // Normal range: round the 13 dropped bits, then move the exponent bias (127 - 15 = 112).
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Subnormal range: adding 0.5 lets the FPU round to a multiple of 2^-24.
  const uint32_t subnormal =
      detail::bits_as<uint32_t>(detail::bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return {static_cast<uint16_t>(sign | result)};
}

template <class T>
inline constexpr DType kDTypeOf = [] {
  static_assert(sizeof(T) == 0, "not an element type");
  return DType::fp32;
}();
template <>
inline constexpr DType kDTypeOf<float> = DType::fp32;
template <>
inline constexpr DType kDTypeOf<bf16> = DType::bf16;
template <>
inline constexpr DType kDTypeOf<fp16> = DType::fp16;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::int32;

constexpr int64_t size_bytes(DType dtype) {
  return dtype == DType::fp32 || dtype == DType::int32 ? 4 : 2;
}
std::string_view name(DType dtype);  // "fp32", "bf16", "fp16", "int32"

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>{}) with T = float, bf16 or fp16.
template <class F>
decltype(auto) with_float_type(DType dtype, F&& f) {
  CHECK(dtype != DType::int32, "a floating-point type is needed");
  if (dtype == DType::fp32) return f(Tag<float>{});
  if (dtype == DType::bf16) return f(Tag<bf16>{});
  return f(Tag<fp16>{});
}

}  // namespace lockstep
