#include "kernels/quantized_matmul.h"

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
// Every width of the kernel, outputs that are no multiple of four or of a task's, several groups,
// few rows and many.
const Case kCases[] = {{8, 32, 1, 32, 1},    {8, 64, 3, 192, 5},   {8, 128, 5, 256, 18},
                       {8, 384, 2, 768, 35}, {4, 32, 1, 32, 3},    {4, 64, 2, 320, 17},
                       {4, 128, 70, 512, 9}, {4, 256, 3, 768, 33}, {4, 128, 1, 4096, 8}};

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
        // The kernel adds up x * (q + offset), takes x * offset out again word by word, offset up
        // to 256, and subtracts x * zero at the end, all in at least four lanes: a term passes
        // through at most 17 additions of its word, a quarter of those of a row, and four roundings
        // before and after them.
        double want = bias[o], magnitude = std::abs(want), offsets = 0;
        for (int64_t i = 0; i < c.inputs; i++) {
          const double scaled = x[n * c.inputs + i] * weight.scale(o, i);
          want += scaled * (weight.number(o, i) - weight.zero(o, i));
          magnitude += std::abs(scaled) * (weight.number(o, i) + weight.zero(o, i));
          offsets += std::abs(scaled) * 2 * 256;
        }
        const double error =
            (magnitude * static_cast<double>(c.inputs / 4 + 4) + offsets * 17) * kRounding;
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
