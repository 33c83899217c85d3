#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <string_view>

#include "core/check.h"

// Element types. bf16 and fp16 are storage only: arithmetic is done in fp32. The conversions are
// always inlined: a loop over them does not vectorise otherwise. They are constexpr so that device
// code may call them.
namespace lockstep {

enum class DType { fp32, bf16, fp16, int32 };

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

[[gnu::always_inline]] constexpr float to_float(float x) { return x; }
[[gnu::always_inline]] constexpr float to_float(bf16 x) {
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}

// Exact, subnormals, infinities and NaNs included. Without selections, so that loops vectorise.
[[gnu::always_inline]] constexpr float to_float(fp16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  // Scaling by 2^112 moves fp16's exponent bias to fp32's and normalises subnormals; infinities and
  // NaNs, of exponent 31, then still lack bits of the largest exponent.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const int32_t special = static_cast<int32_t>(0x0f7fffffu - magnitude) >> 31;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled) |
                              (static_cast<uint32_t>(special) & 0x7f800000u));
}

template <class T>
constexpr T from_float(float x);

template <>
[[gnu::always_inline]] constexpr float from_float<float>(float x) {
  return x;
}

// To nearest, ties to even; NaN stays NaN.
template <>
[[gnu::always_inline]] constexpr bf16 from_float<bf16>(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : rounded)};
}

// To nearest, ties to even; beyond 65504 (rounded) infinity; NaN stays NaN. Without selections.
template <>
[[gnu::always_inline]] constexpr fp16 from_float<fp16>(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = u & 0x7fffffffu;
  // Four times |x|, and infinity from 2^16 on, is added to 2^15 times the power of two below |x|
  // (below 2^-14, where fp16 is subnormal, to 2): the FPU then rounds at fp16's last bit.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f * 0x1p-110f;
  const uint32_t exponent = std::max(magnitude & 0x7f800000u, 0x38800000u);
  const float sum = std::bit_cast<float>(exponent + (15u << 23)) + scaled;
  const uint32_t bits = std::bit_cast<uint32_t>(sum);
  const uint32_t rounded = ((bits >> 13) & 0x7c00u) + (bits & 0x0fffu);
  const uint32_t nan = (0u - ((0x7f800000u - magnitude) >> 31)) & 0x7e00u;
  return {static_cast<uint16_t>((u >> 16 & 0x8000u) | (rounded & 0x7fffu) | nan)};
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
