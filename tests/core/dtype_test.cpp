#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lockstep {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Layout of a 16-bit format: sign, exponent bits, fraction bits.
template <class T>
struct Format;
template <>
struct Format<bf16> {
  static constexpr int kFraction = 7, kBias = 127;
};
template <>
struct Format<fp16> {
  static constexpr int kFraction = 10, kBias = 15;
};

// The value of a bit pattern by IEEE 754's definition.
template <class T>
double value_of(uint16_t bits) {
  constexpr int kFraction = Format<T>::kFraction, kBias = Format<T>::kBias;
  const int exponent = (bits & 0x7fff) >> kFraction, fraction = bits & ((1 << kFraction) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << (15 - kFraction)) - 1) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - kBias - kFraction);
  return sign * std::ldexp((1 << kFraction) + fraction, exponent - kBias - kFraction);
}

template <class T>
class SixteenBit : public testing::Test {};
using SixteenBitTypes = testing::Types<bf16, fp16>;
TYPED_TEST_SUITE(SixteenBit, SixteenBitTypes);

TYPED_TEST(SixteenBit, EveryPatternHasItsValueAndComesBack) {
  for (uint32_t k = 0; k < 1u << 16; k++) {
    const auto bits = static_cast<uint16_t>(k);
    const float wide = to_float(TypeParam{bits});
    const double want = value_of<TypeParam>(bits);
    const uint16_t back = from_float<TypeParam>(wide).bits;
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
      ASSERT_TRUE(std::isnan(to_float(TypeParam{back}))) << bits;
      ASSERT_EQ(back & 0x8000, bits & 0x8000) << bits;
    } else {
      ASSERT_EQ(wide, want) << bits;
      ASSERT_EQ(std::signbit(wide), (bits & 0x8000) != 0) << bits;
      ASSERT_EQ(back, bits);
    }
  }
}

// Between each two neighbours: the middle goes to the even one, what is nearer goes to the nearer.
TYPED_TEST(SixteenBit, RoundsToNearestTiesToEven) {
  using T = TypeParam;
  const uint16_t infinity = from_float<T>(kInfinity).bits;
  for (uint16_t bits = 0; bits < infinity; bits++) {
    const double low = value_of<T>(bits);
    // The last finite value rounds as if the next power of two followed it.
    const double step =
        bits + 1 == infinity ? low - value_of<T>(bits - 1) : value_of<T>(bits + 1) - low;
    const auto middle = static_cast<float>(low + step / 2);
    ASSERT_EQ(double{middle}, low + step / 2) << "the middle is not a number of fp32";
    const auto next = static_cast<uint16_t>(bits + 1);
    for (int sign : {1, -1}) {
      const auto signed_bits = static_cast<uint16_t>(sign < 0 ? 0x8000 : 0);
      const auto narrow = [&](float x) { return from_float<T>(static_cast<float>(sign) * x).bits; };
      ASSERT_EQ(narrow(middle), signed_bits | (bits % 2 == 0 ? bits : next)) << middle;
      ASSERT_EQ(narrow(std::nextafter(middle, 0.0f)), signed_bits | bits) << middle;
      ASSERT_EQ(narrow(std::nextafter(middle, kInfinity)), signed_bits | next) << middle;
    }
  }
}

TYPED_TEST(SixteenBit, SpecialValues) {
  using T = TypeParam;
  EXPECT_EQ(to_float(from_float<T>(kInfinity)), kInfinity);
  EXPECT_EQ(to_float(from_float<T>(-kInfinity)), -kInfinity);
  EXPECT_EQ(to_float(from_float<T>(std::numeric_limits<float>::max())), kInfinity);
  EXPECT_EQ(to_float(from_float<T>(std::numeric_limits<float>::denorm_min())), 0.0f);
  EXPECT_EQ(from_float<T>(-0.0f).bits, 0x8000);
  // NaN of every payload: the lowest bits, which a 16-bit type drops, and all of them.
  for (uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u}) {
    EXPECT_TRUE(std::isnan(to_float(from_float<T>(std::bit_cast<float>(bits))))) << bits;
  }
}

TEST(Fp16, OverflowsHalfAStepAboveItsLargest) {
  EXPECT_EQ(to_float(from_float<fp16>(65504.0f)), 65504.0f);
  EXPECT_EQ(to_float(from_float<fp16>(65519.996f)), 65504.0f);
  EXPECT_EQ(to_float(from_float<fp16>(65520.0f)), kInfinity);
}

TEST(DType, SizesNamesAndDispatch) {
  EXPECT_EQ(size_bytes(DType::fp32), 4);
  EXPECT_EQ(size_bytes(DType::bf16), 2);
  EXPECT_EQ(size_bytes(DType::fp16), 2);
  EXPECT_EQ(size_bytes(DType::int32), 4);
  EXPECT_EQ(name(DType::fp32), "fp32");
  EXPECT_EQ(name(DType::bf16), "bf16");
  EXPECT_EQ(name(DType::fp16), "fp16");
  EXPECT_EQ(name(DType::int32), "int32");
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    EXPECT_EQ(
        with_float_type(dtype, [](auto tag) { return kDTypeOf<typename decltype(tag)::type>; }),
        dtype);
  }
  EXPECT_THROW(with_float_type(DType::int32, [](auto) {}), std::logic_error);
}

}  // namespace
}  // namespace lockstep
