#include "kernels/cpu/gemm_fp32.h"

#include <cmath>

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

std::vector<float> random_floats(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// A product of random operands that lie in larger matrices, with what surrounds them.
struct Product {
  int64_t m, n, k;
  bool a_transposed = false, accumulate = false;
  static constexpr int64_t kGap = 5;

  int64_t a_row() const { return a_transposed ? 1 : k + kGap; }
  int64_t a_column() const { return a_transposed ? m + kGap : 1; }
  std::vector<float> a = random_floats((m + kGap) * (k + kGap), 1);
  std::vector<float> b = random_floats(k * (n + kGap), 2);
  std::vector<float> before = random_floats(m * (n + kGap), 4);

  // Rows [row, row + rows) and columns [column, column + columns) of C, the others as before.
  std::vector<float> run(cpu::GemmFp32Function function, int64_t row, int64_t rows, int64_t column,
                         int64_t columns) const {
    std::vector<float> c = before;
    function({.m = rows,
              .n = columns,
              .k = k,
              .a = a.data() + row * a_row(),
              .a_row = a_row(),
              .a_column = a_column(),
              .b = b.data() + column,
              .b_stride = n + kGap,
              .c = c.data() + row * (n + kGap) + column,
              .c_stride = n + kGap,
              .accumulate = accumulate});
    return c;
  }
  std::vector<float> run(cpu::GemmFp32Function function) const { return run(function, 0, m, 0, n); }
};

// Every number of rows and of vectors of a tile, several tiles, columns that fill no vector, a sum
// of one term and of many, nothing.
const Product kProducts[] = {{1, 1, 1},      {3, 5, 2},
                             {8, 48, 64},    {9, 50, 7, true},
                             {4, 16, 33},    {7, 33, 12, true},
                             {17, 112, 300}, {64, 64, 32, false, true},
                             {6, 96, 40},    {5, 3, 9, true},
                             {30, 17, 20},   {12, 80, 65, true, true},
                             {0, 8, 3},      {2, 0, 3},
                             {2, 20, 0},     {11, 40, 10},
                             {10, 8, 5},     {13, 24, 6, false, true}};

TEST(GemmFp32, IsTheDefinition) {
  for (const Product& p : kProducts) {
    SCOPED_TRACE(testing::Message() << p.m << " x " << p.n << " x " << p.k);
    for (const cpu::GemmFp32Function function : cpu::gemm_fp32_functions()) {
      const std::vector<float> c = p.run(function);
      for (int64_t i = 0; i < p.m; i++) {
        for (int64_t j = 0; j < p.n + Product::kGap; j++) {
          const int64_t place = i * (p.n + Product::kGap) + j;
          if (j >= p.n) {
            ASSERT_EQ(c[place], p.before[place]) << "beside C";
            continue;
          }
          double want = p.accumulate ? p.before[place] : 0, magnitude = std::abs(want);
          const auto add = [&](double term) { want += term, magnitude += std::abs(term); };
          for (int64_t l = 0; l < p.k; l++) {
            add(double{p.a[i * p.a_row() + l * p.a_column()]} * p.b[l * (p.n + Product::kGap) + j]);
          }
          // k sums, a product before it where there is no fused multiply-add, C.
          const double tolerance = magnitude * static_cast<double>(p.k + 2) * kRounding;
          ASSERT_NEAR(c[place], want, tolerance) << i << ", " << j;
        }
      }
    }
  }
}

TEST(GemmFp32, AnElementHasTheSameBitsInAnyPieceOfTheProduct) {
  for (const Product& p : kProducts) {
    SCOPED_TRACE(testing::Message() << p.m << " x " << p.n << " x " << p.k);
    for (const cpu::GemmFp32Function function : cpu::gemm_fp32_functions()) {
      const std::vector<float> all = p.run(function);
      for (int64_t row = 0; row < p.m; row += 3) {
        for (int64_t column = 0; column < p.n; column += 7) {
          const int64_t rows = std::min<int64_t>(5, p.m - row);
          const int64_t columns = std::min<int64_t>(19, p.n - column);
          const std::vector<float> some = p.run(function, row, rows, column, columns);
          for (int64_t i = row; i < row + rows; i++) {
            const int64_t place = i * (p.n + Product::kGap) + column;
            ASSERT_EQ(0, std::memcmp(&some[place], &all[place], columns * sizeof(float)));
          }
        }
      }
    }
  }
}

// The last function has no fused multiply-add; the others agree.
TEST(GemmFp32, HasTheSameBitsOnEveryInstructionSetWithFusedMultiplyAdd) {
  const auto functions = cpu::gemm_fp32_functions();
  if (functions.size() < 3) GTEST_SKIP() << "this machine has one such set at most";
  for (const Product& p : kProducts) {
    for (size_t i = 1; i + 1 < functions.size(); i++) {
      EXPECT_EQ(bytes(p.run(functions[i])), bytes(p.run(functions[0])));
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
