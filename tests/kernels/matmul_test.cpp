#include "kernels/matmul.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

struct LinearSize {
  int64_t rows, inputs, outputs;
};
// Single values, few rows, tails of every piece (64 and 512 rows; 64, 128 and 256 columns; sums of
// 256 and 512 rows, of 1536 and 3072 columns), rows a power of two apart, nothing.
const LinearSize kLinearSizes[] = {{1, 1, 1},     {3, 7, 5},      {4, 33, 9},      {5, 16, 3},
                                   {64, 64, 256}, {65, 130, 257}, {600, 72, 90},   {1100, 20, 300},
                                   {2, 300, 600}, {0, 8, 8},      {128, 1000, 10}, {5, 3300, 6},
                                   {66, 9, 3300}, {20, 512, 1024}};

template <class T>
std::vector<T> random_values(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values;
  for (int64_t i = 0; i < n; i++) values.push_back(from_float<T>(normal(random)));
  return values;
}

// The bound of a sum of `terms` products, made in fp32 in any order, of which `magnitude` is the
// sum of absolute values: each term passes through at most `terms` roundings of 2^-24 relative.
// Storing as T rounds once more.
template <class T>
double tolerance(double want, double magnitude, int64_t terms) {
  const double sum = magnitude * static_cast<double>(terms) * kRounding;
  return sum + storage_error<T>(std::abs(want) + sum);
}

template <class T>
struct Linear {
  LinearSize size;
  Rows rows = Rows::in_tiles;
  std::vector<T> x, weight, bias, dy, y, dx;
  std::vector<float> dweight, dbias;

  explicit Linear(LinearSize s)
      : size(s),
        x(random_values<T>(s.rows * s.inputs, 1)),
        weight(random_values<T>(s.outputs * s.inputs, 2)),
        bias(random_values<T>(s.outputs, 3)),
        dy(random_values<T>(s.rows * s.outputs, 4)),
        y(s.rows * s.outputs),
        dx(s.rows * s.inputs),
        dweight(s.outputs * s.inputs, 10.0f),
        dbias(s.outputs, 20.0f) {}

  void run(bool with_bias = true) {
    Stream stream;
    const Shape xs{size.rows, size.inputs}, ys{size.rows, size.outputs};
    const Shape ws{size.outputs, size.inputs}, bs{size.outputs};
    linear_forward(tensor(y, ys), tensor(x, xs), tensor(weight, ws),
                   with_bias ? tensor(bias, bs) : Tensor(), rows, stream);
    linear_backward_input(tensor(dx, xs), tensor(dy, ys), tensor(weight, ws), stream);
    linear_backward_weight(tensor(dweight, ws), with_bias ? tensor(dbias, bs) : Tensor(),
                           tensor(dy, ys), tensor(x, xs), stream);
  }
};

template <class T>
void expect_sum(double got, double start, int64_t terms, auto term, const char* what) {
  double want = start, magnitude = std::abs(start);
  for (int64_t k = 0; k < terms; k++) {
    want += term(k);
    magnitude += std::abs(term(k));
  }
  ASSERT_NEAR(got, want, tolerance<T>(want, magnitude, terms + 2)) << what;
}

template <class T>
class Matmul : public testing::Test {
 protected:
  void TearDown() override { set_num_threads(1); }
};
TYPED_TEST_SUITE(Matmul, FloatTypes);

TYPED_TEST(Matmul, IsTheDefinition) {
  using T = TypeParam;
  set_num_threads(2);
  for (const LinearSize s : kLinearSizes) {
    SCOPED_TRACE(testing::Message() << s.rows << " x " << s.inputs << " x " << s.outputs);
    Linear<T> test(s);
    test.run();
    const auto x = [&](int64_t n, int64_t i) { return double{to_float(test.x[n * s.inputs + i])}; };
    const auto w = [&](int64_t o, int64_t i) {
      return double{to_float(test.weight[o * s.inputs + i])};
    };
    const auto dy = [&](int64_t n, int64_t o) {
      return double{to_float(test.dy[n * s.outputs + o])};
    };
    for (int64_t n = 0; n < s.rows; n++) {
      for (int64_t o = 0; o < s.outputs; o++) {
        expect_sum<T>(
            to_float(test.y[n * s.outputs + o]), to_float(test.bias[o]), s.inputs,
            [&](int64_t i) { return x(n, i) * w(o, i); }, "y");
      }
      for (int64_t i = 0; i < s.inputs; i++) {
        expect_sum<T>(
            to_float(test.dx[n * s.inputs + i]), 0, s.outputs,
            [&](int64_t o) { return dy(n, o) * w(o, i); }, "dx");
      }
    }
    for (int64_t o = 0; o < s.outputs; o++) {
      expect_sum<float>(
          test.dbias[o], 20, s.rows, [&](int64_t n) { return dy(n, o); }, "dbias");
      for (int64_t i = 0; i < s.inputs; i++) {
        expect_sum<float>(
            test.dweight[o * s.inputs + i], 10, s.rows,
            [&](int64_t n) { return dy(n, o) * x(n, i); }, "dweight");
      }
    }
  }
}

TYPED_TEST(Matmul, WorksWithoutBias) {
  Linear<TypeParam> with({70, 40, 50}), without({70, 40, 50});
  with.bias.assign(with.bias.size(), TypeParam{});
  with.run(true);
  without.run(false);
  EXPECT_EQ(0, std::memcmp(with.y.data(), without.y.data(), with.y.size() * sizeof(TypeParam)));
  EXPECT_EQ(without.dbias, std::vector<float>(50, 20.0f));
}

TYPED_TEST(Matmul, BitsDoNotDependOnThreads) {
  for (const LinearSize s :
       {LinearSize{200, 256, 520}, LinearSize{1030, 130, 70}, LinearSize{3, 600, 300}}) {
    expect_same_bits_for_any_threads([&] {
      Linear<TypeParam> test(s);
      test.run();
      return bytes(test.y) + bytes(test.dx) + bytes(test.dweight) + bytes(test.dbias);
    });
  }
}

// A run of rows, alone, gives the bits that it has among the others.
TYPED_TEST(Matmul, RowsDoNotDependOnEachOther) {
  constexpr int64_t kFirst = 7;
  for (const auto& [rows, inputs] : {std::pair{Rows::in_tiles, int64_t{768}},
                                     {Rows::in_tiles, 97},
                                     {Rows::one_by_one, 768},
                                     {Rows::one_by_one, 97},
                                     {Rows::one_by_one, 13},
                                     {Rows::one_by_one, 4}}) {
    Linear<TypeParam> all({150, inputs, 300});
    all.rows = rows;
    all.run();
    for (const int64_t count : {1, 2, 3, 4, 5, 7, 16, 40, 98}) {
      Linear<TypeParam> some({count, inputs, 300});
      some.rows = rows;
      std::copy_n(&all.x[kFirst * inputs], count * inputs, some.x.data());
      std::copy_n(&all.dy[kFirst * 300], count * 300, some.dy.data());
      some.run();
      const auto part = [&](auto& v, int64_t width) {
        return std::vector(&v[kFirst * width], &v[(kFirst + count) * width]);
      };
      EXPECT_EQ(bytes(part(all.y, 300)), bytes(some.y)) << count;
      EXPECT_EQ(bytes(part(all.dx, inputs)), bytes(some.dx)) << count;
    }
  }
}

TYPED_TEST(Matmul, OneByOneIsTheDefinitionToo) {
  using T = TypeParam;
  set_num_threads(2);
  for (const LinearSize s : kLinearSizes) {
    SCOPED_TRACE(testing::Message() << s.rows << " x " << s.inputs << " x " << s.outputs);
    Linear<T> test(s);
    test.rows = Rows::one_by_one;
    test.run();
    for (int64_t n = 0; n < s.rows; n++) {
      for (int64_t o = 0; o < s.outputs; o++) {
        const auto term = [&](int64_t i) {
          return double{to_float(test.x[n * s.inputs + i])} *
                 to_float(test.weight[o * s.inputs + i]);
        };
        expect_sum<T>(to_float(test.y[n * s.outputs + o]), to_float(test.bias[o]), s.inputs, term,
                      "y");
      }
    }
  }
}

TEST(MatmulErrors, NamesShapesThatDoNotFit) {
  Linear<float> test({4, 5, 6});
  Stream stream;
  EXPECT_THROW(linear_forward(tensor(test.y, {4, 6}), tensor(test.x, {4, 5}),
                              tensor(test.weight, {5, 6}), Tensor(), stream),
               std::logic_error);
}

TEST(MatmulFastProduct, IsNeverClaimedForFp32) { EXPECT_FALSE(cpu::has_fast_product(DType::fp32)); }

}  // namespace
}  // namespace lockstep::kernels::tests
