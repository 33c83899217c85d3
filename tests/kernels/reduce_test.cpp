#include "kernels/reduce.h"

#include "tests/kernels/sums.h"
#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

constexpr int64_t kCounts[] = {0, 1, 3, 1000, kReduceBlock, kReduceBlock + 1, 5 * kReduceBlock - 7};

TEST(Reduce, SumsAreThoseOfFloat64) {
  Stream stream;
  for (int64_t n : kCounts) {
    auto x = Values<float>::normal({n}, 1, 0.1f, 3.0f);
    long double sum_exact = 0, squares = 0, magnitude = 0;
    for (int64_t i = 0; i < n; i++) {
      sum_exact += x[i], squares += static_cast<long double>(x[i]) * x[i];
      magnitude += std::abs(x[i]);
    }
    // A term passes through at most n / 8 additions in a block and few between blocks; squares of
    // fp32 are exact in float64.
    const double error = (static_cast<double>(std::min(n, kReduceBlock)) / 8 + 16) * 0x1p-53;
    EXPECT_NEAR(sum(x.tensor(), stream), static_cast<double>(sum_exact),
                error * static_cast<double>(magnitude));
    EXPECT_NEAR(sum_of_squares(x.tensor(), stream), static_cast<double>(squares),
                error * static_cast<double>(squares));
  }
}

// The tree: 2^53 + 1 is lost where the two meet, so the result names the order of the additions.
TEST(Reduce, BlocksAreJoinedInABinaryTree) {
  Stream stream;
  Values<float> x({5 * kReduceBlock});
  const double blocks[] = {0x1p53, 1, 1, 0, 1};
  for (int k = 0; k < 5; k++) x.set(k * kReduceBlock, static_cast<float>(blocks[k]));
  // ((2^53 + 1) + (1 + 0)) + 1: each addition of 1 is a tie that rounds to even.
  EXPECT_EQ(sum(x.tensor(), stream), 0x1p53);
  const double others[] = {0x1p53, 0, 1, 1, 0};
  for (int k = 0; k < 5; k++) x.set(k * kReduceBlock, static_cast<float>(others[k]));
  // (2^53 + 0) + (1 + 1), whereas one after the other would lose both.
  EXPECT_EQ(sum(x.tensor(), stream), 0x1p53 + 2);
}

TEST(Reduce, IsNotFiniteExactlyWhenAnInputIsNot) {
  Stream stream;
  constexpr int64_t kCount = 2 * kReduceBlock + 13;
  Values<float> x({kCount}, 3e38f);
  EXPECT_NEAR(sum_of_squares(x.tensor(), stream) / (kCount * double{3e38f} * double{3e38f}), 1,
              1e-11);
  for (int64_t place : {int64_t{0}, int64_t{1}, kReduceBlock - 1, kReduceBlock, kCount - 1}) {
    for (float bad : {kNan, kInfinity, -kInfinity}) {
      x.set(place, bad);
      EXPECT_FALSE(std::isfinite(sum_of_squares(x.tensor(), stream))) << place << " " << bad;
      EXPECT_FALSE(std::isfinite(sum(x.tensor(), stream))) << place << " " << bad;
      x.set(place, 3e38f);
    }
  }
}

TEST(Reduce, BitsDoNotDependOnThreadsOrAlignment) {
  Stream stream;
  auto x = Values<float>::normal({7 * kReduceBlock - 5}, 1);
  const auto bytes = [&](const Tensor& t) {
    const double values[] = {sum(t, stream), sum_of_squares(t, stream)};
    return std::string(reinterpret_cast<const char*>(values), sizeof(values));
  };
  expect_same_bits_for_any_threads([&] { return bytes(x.tensor()); });
  const std::string want = bytes(x.tensor());
  for (int64_t shift = 1; shift < 16; shift++) {
    Values<float> shifted({x.size() + 16});
    for (int64_t i = 0; i < x.size(); i++) shifted.set(i + shift, static_cast<float>(x[i]));
    EXPECT_EQ(bytes(shifted.tensor().slice(shift, shift + x.size())), want) << shift;
  }
}

TEST(Reduce, RangesHaveTheirOwnSums) {
  Stream stream;
  auto x = Values<float>::normal({4 * kReduceBlock}, 1);
  const Range ranges[] = {{5, 5 + 2 * kReduceBlock}, {7, 7}, {3, 100}, {100, 101}};
  double totals[] = {1, 2, 0, 0};
  add_sums_of_squares(totals, x.tensor(), ranges, 4, 2 * kReduceBlock, stream);
  const auto alone = [&](const Range& r) {
    return sum_of_squares(x.tensor().slice(r.begin, r.end), stream);
  };
  EXPECT_EQ(totals[0], 1 + alone(ranges[0]));
  EXPECT_EQ(totals[1], 2);
  EXPECT_EQ(totals[2], alone(ranges[2]));
  EXPECT_EQ(totals[3], x[100] * x[100]);
}

template <class To, class From>
void expect_cast() {
  Stream stream;
  for (int64_t n : kCounts) {
    auto x = Values<From>::normal({n}, 1);
    const float special[] = {kInfinity, -kInfinity, kNan, 1e30f, 1e-40f, -0.0f};
    for (int64_t i = 0; i < std::min<int64_t>(n, 6); i++) x.set(i, special[i]);
    Values<To> out({n});
    cast(out.tensor(), x.tensor(), stream);
    for (int64_t i = 0; i < n; i++) {
      const float want = to_float(from_float<To>(static_cast<float>(x[i])));
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(out[i]));
      } else {
        ASSERT_EQ(out[i], want);
        ASSERT_EQ(std::signbit(out[i]), std::signbit(want));
      }
    }
  }
}

TEST(Cast, IsTheConversionOfEveryValue) {
  expect_cast<float, float>(), expect_cast<bf16, float>(), expect_cast<fp16, float>();
  expect_cast<float, bf16>(), expect_cast<bf16, bf16>(), expect_cast<fp16, bf16>();
  expect_cast<float, fp16>(), expect_cast<bf16, fp16>(), expect_cast<fp16, fp16>();
}

TEST(SetZero, ClearsAllAndNothingElse) {
  Stream stream;
  for (int64_t n : kCounts) {
    Values<float> x({n}, 1.0f);
    Values<bf16> y({n}, 1.0f);
    Values<int32_t> z({n}, 1.0f);
    set_zero(x.tensor(), stream), set_zero(y.tensor(), stream), set_zero(z.tensor(), stream);
    for (int64_t i = 0; i < n; i++) ASSERT_TRUE(x[i] == 0 && y[i] == 0 && z[i] == 0) << i;
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
