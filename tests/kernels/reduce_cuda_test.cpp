#include "kernels/reduce.h"
#include "tests/kernels/on_device.h"
#include "tests/kernels/sums.h"

namespace lockstep::kernels::tests {
namespace {

constexpr int64_t kCounts[] = {0, 1, 3, 1000, kReduceBlock, kReduceBlock + 1, 5 * kReduceBlock - 7};

using ReduceCuda = CudaTest;

TEST_F(ReduceCuda, SumsAreThoseOfTheCpu) {
  Stream host, stream(Device::cuda);
  for (const int64_t n : kCounts) {
    for (const int64_t shift : {0, 1}) {
      auto on_cpu = Values<float>::normal({n}, 1, 0.1f, 3.0f);
      OnDevice<float> x(on_cpu, stream, shift);
      double magnitude = 0;
      for (int64_t i = 0; i < n; i++) magnitude += std::abs(on_cpu[i]);
      // On either side a term passes through at most n / 8 additions in a block and few between
      // blocks; squares of fp32 are exact in float64.
      const double error = 2 * (static_cast<double>(std::min(n, kReduceBlock)) / 8 + 16) * 0x1p-53;
      EXPECT_NEAR(sum(x.tensor(), stream), sum(on_cpu.tensor(), host), error * magnitude) << n;
      const double squares = sum_of_squares(on_cpu.tensor(), host);
      EXPECT_NEAR(sum_of_squares(x.tensor(), stream), squares, error * squares) << n;
    }
  }
}

// The tree: 2^53 + 1 is lost where the two meet, so the result names the order of the additions.
TEST_F(ReduceCuda, BlocksAreJoinedInABinaryTree) {
  Stream stream(Device::cuda);
  Values<float> x({5 * kReduceBlock});
  const double blocks[] = {0x1p53, 1, 1, 0, 1}, others[] = {0x1p53, 0, 1, 1, 0};
  for (int k = 0; k < 5; k++) x.set(k * kReduceBlock, static_cast<float>(blocks[k]));
  // ((2^53 + 1) + (1 + 0)) + 1: each addition of 1 is a tie that rounds to even.
  EXPECT_EQ(sum(OnDevice<float>(x, stream).tensor(), stream), 0x1p53);
  for (int k = 0; k < 5; k++) x.set(k * kReduceBlock, static_cast<float>(others[k]));
  // (2^53 + 0) + (1 + 1), whereas one after the other would lose both.
  EXPECT_EQ(sum(OnDevice<float>(x, stream).tensor(), stream), 0x1p53 + 2);
}

TEST_F(ReduceCuda, IsNotFiniteExactlyWhenAnInputIsNot) {
  Stream stream(Device::cuda);
  constexpr int64_t kCount = kReduceBlock + 13;
  Values<float> x({kCount}, 3e38f);
  EXPECT_NEAR(sum_of_squares(OnDevice<float>(x, stream).tensor(), stream) /
                  (kCount * double{3e38f} * double{3e38f}),
              1, 1e-11);
  for (const int64_t place : {int64_t{0}, kReduceBlock - 1, kReduceBlock, kCount - 1}) {
    for (const float bad : {kNan, -kInfinity}) {
      x.set(place, bad);
      const OnDevice<float> on_gpu(x, stream);
      EXPECT_FALSE(std::isfinite(sum_of_squares(on_gpu.tensor(), stream))) << place << " " << bad;
      EXPECT_FALSE(std::isfinite(sum(on_gpu.tensor(), stream))) << place << " " << bad;
      x.set(place, 3e38f);
    }
  }
}

TEST_F(ReduceCuda, BitsDoNotDependOnAlignment) {
  Stream stream(Device::cuda);
  const auto x = Values<float>::normal({2 * kReduceBlock - 5}, 1);
  const OnDevice<float> aligned(x, stream);
  for (const int64_t shift : {1, 2, 3}) {
    const OnDevice<float> shifted(x, stream, shift);
    EXPECT_EQ(sum(shifted.tensor(), stream), sum(aligned.tensor(), stream)) << shift;
    EXPECT_EQ(sum_of_squares(shifted.tensor(), stream), sum_of_squares(aligned.tensor(), stream));
  }
}

TEST_F(ReduceCuda, RangesHaveTheirOwnSums) {
  Stream stream(Device::cuda);
  const auto on_cpu = Values<float>::normal({3 * kReduceBlock}, 1);
  const OnDevice<float> x(on_cpu, stream);
  struct Four {
    Range ranges[4] = {{5, 5 + kReduceBlock + 9}, {7, 7}, {3, 100}, {100, 101}};
    double totals[4] = {1, 2, 0, 0};
  };
  Mirrored<Four> four(Device::cuda);
  const Four before = four.host();
  four.upload(stream);
  add_sums_of_squares(four.there()->totals, x.tensor(), four.there()->ranges, 4, kReduceBlock + 9,
                      stream);
  four.download(stream);
  stream.synchronize();
  for (int r = 0; r < 4; r++) {
    const Range range = before.ranges[r];
    EXPECT_EQ(four.host().totals[r],
              before.totals[r] + sum_of_squares(x.tensor().slice(range.begin, range.end), stream))
        << r;
  }
}

template <class To, class From>
void expect_cast() {
  Stream stream(Device::cuda);
  for (const int64_t n : {0, 1, 7, 8, 1000, 4099}) {
    for (const int64_t shift : {0, 1}) {
      auto x = Values<From>::normal({n}, 1);
      const float special[] = {kInfinity, -kInfinity, kNan, 1e30f, 1e-40f, -0.0f};
      for (int64_t i = 0; i < std::min<int64_t>(n, 6); i++) x.set(i, special[i]);
      OnDevice<From> from(x, stream, shift);
      OnDevice<To> to(Values<To>({n}, 5), stream, shift);
      cast(to.tensor(), from.tensor(), stream);
      const Values<To>& out = to.values();
      for (int64_t i = 0; i < n; i++) {
        const float want = to_float(from_float<To>(static_cast<float>(x[i])));
        if (std::isnan(want)) {
          ASSERT_TRUE(std::isnan(out[i]));
        } else {
          ASSERT_EQ(out[i], want) << i;
          ASSERT_EQ(std::signbit(out[i]), std::signbit(want));
        }
      }
    }
  }
}

TEST_F(ReduceCuda, CastIsTheConversionOfEveryValue) {
  expect_cast<float, float>(), expect_cast<bf16, float>(), expect_cast<fp16, float>();
  expect_cast<float, bf16>(), expect_cast<bf16, bf16>(), expect_cast<fp16, bf16>();
  expect_cast<float, fp16>(), expect_cast<bf16, fp16>(), expect_cast<fp16, fp16>();
}

TEST_F(ReduceCuda, SetZeroClearsAllAndNothingElse) {
  Stream stream(Device::cuda);
  for (const int64_t n : {1, 3, 1000}) {
    OnDevice<bf16> x(Values<bf16>({n + 2}, 1), stream);
    set_zero(x.tensor().slice(1, n + 1), stream);
    const Values<bf16>& out = x.values();
    for (int64_t i = 0; i < n + 2; i++) ASSERT_EQ(out[i], i == 0 || i == n + 1 ? 1 : 0) << i;
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
