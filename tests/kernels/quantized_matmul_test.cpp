#include "kernels/quantized_matmul.h"

#include "kernels/cpu/quantized_dots.h"
#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

// A matrix of random numbers with random scales and zeros.
struct RandomMatrix {
  std::vector<uint8_t> q, zeros;
  std::vector<float> scales;
  std::vector<uint32_t> words;
  QuantizedMatrix view;

  RandomMatrix(int64_t outputs, int64_t inputs, int bits, int64_t group_size, unsigned seed)
      : q(outputs * inputs),
        zeros(outputs * inputs / group_size),
        scales(zeros.size()),
        words(outputs * inputs * bits / 32),
        view{outputs, inputs, bits, group_size, words.data(), scales.data(), zeros.data()} {
    std::mt19937 random(seed);
    for (uint8_t& value : q) value = random() >> (32 - bits);
    for (uint8_t& value : zeros) value = random() >> (32 - bits);
    for (float& value : scales) value = std::uniform_real_distribution(0.01f, 1.0f)(random);
    for (int64_t o = 0; o < outputs; o++) pack_row(view, o, q.data() + o * inputs);
  }

  double scale(int64_t o, int64_t i) const {
    return scales[(o * view.inputs + i) / view.group_size];
  }
  int zero(int64_t o, int64_t i) const { return zeros[(o * view.inputs + i) / view.group_size]; }
  int number(int64_t o, int64_t i) const { return q[o * view.inputs + i]; }
};

struct Case {
  int bits;
  int64_t group_size, rows, inputs, outputs;
};
// Every width of the kernel, several blocks to a vector and several vectors to a block, outputs
// that are no multiple of four or of a task's, several groups, few rows and many.
const Case kCases[] = {{8, 32, 1, 32, 1},    {8, 64, 3, 192, 5},   {8, 128, 5, 256, 18},
                       {8, 384, 2, 768, 35}, {4, 32, 1, 32, 3},    {4, 64, 2, 320, 17},
                       {4, 128, 70, 512, 9}, {4, 256, 3, 768, 33}, {4, 128, 1, 4096, 8},
                       {8, 32, 2, 192, 6},   {4, 32, 2, 64, 5},    {4, 32, 3, 384, 7},
                       {4, 64, 1, 256, 4}};

template <class T>
double largest(const Values<T>& x, int64_t first, int64_t count) {
  double most = 0;
  for (int64_t i = first; i < first + count; i++) most = std::max(most, std::abs(x[i]));
  return most;
}

template <class T>
class QuantizedMatmul : public testing::Test {
 protected:
  void TearDown() override { set_num_threads(1); }
};
TYPED_TEST_SUITE(QuantizedMatmul, FloatTypes);

TYPED_TEST(QuantizedMatmul, AgreesWithFloat64) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    const RandomMatrix weight(c.outputs, c.inputs, c.bits, c.group_size, 1);
    auto x = Values<T>::normal({c.rows, c.inputs}, 2, 0.5f),
         bias = Values<T>::normal({c.outputs}, 3);
    Values<T> y({c.rows, c.outputs});
    Stream stream;
    cpu::quantized_linear_forward(y.tensor(), x.tensor(), weight.view, bias.tensor(), stream);
    for (int64_t n = 0; n < c.rows; n++) {
      for (int64_t o = 0; o < c.outputs; o++) {
        // Activations are rounded to half of the last of 16 bits under the largest of their block,
        // which is within a group, in fp32 (a hundredth more is room for that). Then a lane adds up
        // its blocks, which have 32 inputs or more, lanes are added up, and so are groups of zeros;
        // the terms were rounded four times before.
        double want = bias[o], magnitude = std::abs(want), error = 0;
        for (int64_t i = 0; i < c.inputs; i++) {
          const double scaled = x[n * c.inputs + i] * weight.scale(o, i);
          const int number = weight.number(o, i), zero = weight.zero(o, i);
          want += scaled * (number - zero);
          magnitude += std::abs(scaled) * (number + zero);
          error += 0.51 / 32767 *
                   largest(x, n * c.inputs + i / c.group_size * c.group_size, c.group_size) *
                   weight.scale(o, i) * std::abs(number - zero);
        }
        error += magnitude * static_cast<double>(c.inputs / 16 + 24) * kRounding;
        ASSERT_NEAR(y[n * c.outputs + o], want, error + storage_error<T>(std::abs(want) + error))
            << c.bits << " bits, groups of " << c.group_size << ", row " << n << ", output " << o;
      }
    }
  }
}

TYPED_TEST(QuantizedMatmul, ARowHasTheSameBitsInAnyCallAndForAnyThreads) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    const RandomMatrix weight(c.outputs, c.inputs, c.bits, c.group_size, 4);
    auto x = Values<T>::normal({c.rows, c.inputs}, 5);
    expect_same_bits_for_any_threads([&] {
      Values<T> together({c.rows, c.outputs}), alone({c.rows, c.outputs});
      Stream stream;
      cpu::quantized_linear_forward(together.tensor(), x.tensor(), weight.view, {}, stream);
      for (int64_t n = 0; n < c.rows; n++) {
        cpu::quantized_linear_forward(alone.tensor().slice(n, n + 1), x.tensor().slice(n, n + 1),
                                      weight.view, {}, stream);
      }
      EXPECT_TRUE(together.bytes() == alone.bytes()) << c.bits << " bits, " << c.rows << " rows";
      return together.bytes();
    });
  }
}

// The functions for narrower vectors, which other machines take, give the same integers: their
// results differ by the order of fp32 sums alone.
TEST(QuantizedDots, AgreeForVectorsOfAnyWidth) {
  for (const Case& c : kCases) {
    const RandomMatrix weight(cpu::kDotRows, c.inputs, c.bits, c.group_size, 9);
    auto x = Values<float>::normal({c.inputs}, 10);
    cpu::QuantizedRow rows[cpu::kDotRows];
    for (int64_t j = 0; j < cpu::kDotRows; j++) {
      rows[j] = {weight.view.words + j * weight.view.words_of_row(),
                 weight.view.scales + j * weight.view.groups(),
                 weight.view.zeros + j * weight.view.groups()};
    }
    std::vector<float> results[3];
    for (int64_t width = 0; width < 3; width++) {
      const cpu::QuantizedDots functions = cpu::quantized_dots_for(weight.view, 16 >> width);
      std::vector<int16_t> numbers(c.inputs);
      std::vector<float> scales(c.inputs / 32), sums(weight.view.groups());
      const cpu::RoundedRow rounded{numbers.data(), scales.data(), sums.data()};
      functions.round(rounded, x.tensor().as<float>(), weight.view);
      results[width].resize(cpu::kDotRows);
      functions.dots(results[width].data(), rounded, rows, weight.view);
      // Which rows stand together depends on threads, so a row's place must not matter.
      for (int64_t turn = 1; turn < cpu::kDotRows; turn++) {
        cpu::QuantizedRow turned[cpu::kDotRows];
        float again[cpu::kDotRows];
        std::rotate_copy(rows, rows + turn, rows + cpu::kDotRows, turned);
        functions.dots(again, rounded, turned, weight.view);
        for (int64_t j = 0; j < cpu::kDotRows; j++) {
          EXPECT_EQ(again[j], results[width][(j + turn) % cpu::kDotRows]);
        }
      }
    }
    for (int64_t j = 0; j < cpu::kDotRows; j++) {
      double magnitude = 0;
      for (int64_t i = 0; i < c.inputs; i++) {
        magnitude +=
            std::abs(x[i]) * weight.scale(j, i) * (weight.number(j, i) + weight.zero(j, i));
      }
      const double error = 2 * magnitude * static_cast<double>(c.inputs / 16 + 24) * kRounding;
      EXPECT_NEAR(results[0][j], results[1][j], error) << c.bits << " bits of " << c.group_size;
      EXPECT_NEAR(results[0][j], results[2][j], error) << c.bits << " bits of " << c.group_size;
    }
  }
}

// By a weight that is the identity: y is x as it was rounded.
TEST(QuantizedRows, AreRoundedToHalfOfTheLastOf16Bits) {
  for (const Case& c : kCases) {
    RandomMatrix identity(c.inputs, c.inputs, c.bits, c.group_size, 12);
    std::fill(identity.scales.begin(), identity.scales.end(), 1.0f);
    std::fill(identity.zeros.begin(), identity.zeros.end(), 0);
    for (int64_t o = 0; o < c.inputs; o++) {
      std::vector<uint8_t> row(c.inputs);
      row[o] = 1;
      pack_row(identity.view, o, row.data());
    }
    auto x = Values<float>::normal({1, c.inputs}, 13);
    Values<float> y({1, c.inputs});
    Stream stream;
    cpu::quantized_linear_forward(y.tensor(), x.tensor(), identity.view, {}, stream);
    for (int64_t i = 0; i < c.inputs; i++) {
      const double most = largest(x, i / c.group_size * c.group_size, c.group_size);
      // Half a step, and the few roundings to fp32 around it: of numbers up to 32767 steps, each
      // by 2^-24 of them, 0.002 steps.
      EXPECT_NEAR(y[i], x[i], 0.51 / 32767 * most) << c.bits << " bits of " << c.group_size;
    }
  }
}

TEST(QuantizedRows, ThatHaveNoLargest) {
  const RandomMatrix weight(5, 128, 4, 64, 11);
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const float tiny = 1e-37f;  // its inverse times 32767 is no float
  Values<float> x({4, 128}), y({4, 5});
  x.set(1 * 128 + 70, nan);
  x.set(2 * 128 + 3, -infinity);
  for (int64_t i = 0; i < 128; i++) x.set(3 * 128 + i, i % 2 == 0 ? tiny : -tiny / 3);
  Stream stream;
  cpu::quantized_linear_forward(y.tensor(), x.tensor(), weight.view, {}, stream);
  for (int64_t o = 0; o < 5; o++) {
    EXPECT_EQ(y[o], 0);
    EXPECT_TRUE(std::isnan(y[5 + o]));
    EXPECT_TRUE(std::isnan(y[10 + o]));
    EXPECT_EQ(y[15 + o], 0);
  }
}

TEST(QuantizedMatrix, RowsPackAndUnpack) {
  for (const Case& c : kCases) {
    const RandomMatrix weight(c.outputs, c.inputs, c.bits, c.group_size, 6);
    std::vector<uint8_t> row(c.inputs);
    for (int64_t o = 0; o < c.outputs; o++) {
      unpack_row(weight.view, o, row.data());
      EXPECT_TRUE(std::equal(row.begin(), row.end(), weight.q.begin() + o * c.inputs));
    }
  }
}

// The places that docs/quantization.md gives to other readers.
TEST(QuantizedMatrix, NumbersStandWhereTheFormatSays) {
  RandomMatrix weight(1, 256, 4, 128, 7);
  // Input 200 is input 72 of group 1, whose words begin at 16: 72 = 4 * 16 + 8.
  EXPECT_EQ(weight.words[16 + 8] >> 16 & 15, weight.q[200]);
  RandomMatrix bytes(1, 64, 8, 64, 8);
  EXPECT_EQ(bytes.words[3] >> 8 & 255, bytes.q[16 + 3]);
}

TEST(QuantizedMatrix, GroupSizesOfTheKernel) {
  for (int64_t size : {32, 64, 128, 256, 384, 1024}) EXPECT_TRUE(is_group_size(size)) << size;
  for (int64_t size : {-128, 0, 1, 16, 48, 96, 100, 160, 192})
    EXPECT_FALSE(is_group_size(size)) << size;
}

}  // namespace
}  // namespace lockstep::kernels::tests
