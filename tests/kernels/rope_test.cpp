#include "kernels/rope.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

struct RopeSize {
  int64_t batch, length, num_heads, num_kv_heads, head_dim;
};
constexpr RopeSize kRopeSizes[] = {
    {1, 1, 1, 1, 2}, {2, 3, 3, 1, 6}, {3, 25, 4, 2, 64}, {1, 5, 2, 2, 128}, {2, 4, 1, 1, 250}};
constexpr int64_t kPositions = 40, kFirst = 9;

double angle(int64_t position, int64_t i, int64_t head_dim) {
  return static_cast<double>(position) *
         std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
}

Values<float> make_table(int64_t head_dim) {
  Values<float> table({kPositions, head_dim});
  for (int64_t t = 0; t < kPositions; t++) {
    for (int64_t i = 0; i < head_dim / 2; i++) {
      const double a = angle(t, i, head_dim);
      table.set(t * head_dim + i, static_cast<float>(std::cos(a)));
      table.set(t * head_dim + head_dim / 2 + i, static_cast<float>(std::sin(a)));
    }
  }
  return table;
}

template <class T>
class Rope : public testing::Test {};
TYPED_TEST_SUITE(Rope, FloatTypes);

// The value at (row, column) of rotating x by direction * angle.
template <class T>
double rotated(const Values<T>& x, const RopeSize& s, int64_t row, int64_t column, int direction) {
  const int64_t width = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim;
  const int64_t head = column / s.head_dim, place = column % s.head_dim, half = s.head_dim / 2;
  const int64_t base = row * width + head * s.head_dim;
  if (head >= s.num_heads + s.num_kv_heads) return x[row * width + column];
  const double a = direction * angle(kFirst + row % s.length, place % half, s.head_dim);
  const double low = x[base + place % half], high = x[base + place % half + half];
  return place < half ? low * std::cos(a) - high * std::sin(a)
                      : high * std::cos(a) + low * std::sin(a);
}

TYPED_TEST(Rope, RotatesQueriesAndKeysAndLeavesValues) {
  using T = TypeParam;
  Stream stream;
  for (const RopeSize& s : kRopeSizes) {
    const Heads heads{s.num_heads, s.num_kv_heads, s.head_dim};
    const auto x = Values<T>::normal({s.batch, s.length, heads.packed()}, 1);
    auto table = make_table(s.head_dim);
    for (int direction : {1, -1}) {
      auto qkv = x;
      (direction == 1 ? rope_forward : rope_backward)(qkv.tensor(), table.tensor(), heads, kFirst,
                                                      stream);
      for (int64_t i = 0; i < x.size(); i++) {
        const double want = rotated(x, s, i / heads.packed(), i % heads.packed(), direction);
        // Two products of values below 6 with rounded factors, and a sum.
        ASSERT_NEAR(qkv[i], want, 6 * 6 * kRounding + 1.01 * storage_error<T>(want))
            << i << ", direction " << direction;
        if (i % heads.packed() >= (s.num_heads + s.num_kv_heads) * s.head_dim) {
          ASSERT_EQ(qkv[i], x[i]);
        }
      }
    }
  }
}

// A rotation is linear, so its derivative is its transpose: <dy, R x> = <R' dy, x>.
TEST(RopeBackward, IsTheTransposeOfForward) {
  Stream stream;
  const Heads heads{3, 2, 10};
  const Shape shape{2, 4, heads.packed()};
  const auto x = Values<float>::normal(shape, 1), dy = Values<float>::normal(shape, 2);
  auto table = make_table(10);
  auto y = x, dx = dy;
  rope_forward(y.tensor(), table.tensor(), heads, kFirst, stream);
  rope_backward(dx.tensor(), table.tensor(), heads, kFirst, stream);
  double with_y = 0, with_x = 0, magnitude = 0;
  for (int64_t i = 0; i < x.size(); i++) {
    with_y += dy[i] * y[i];
    with_x += dx[i] * x[i];
    magnitude += std::abs(dy[i] * y[i]);
  }
  EXPECT_NEAR(with_y, with_x, 8 * kRounding * magnitude);
}

TYPED_TEST(Rope, BitsDoNotDependOnThreadsOrOtherTokens) {
  using T = TypeParam;
  const Heads heads{3, 1, 14};
  auto table = make_table(14);
  Stream stream;
  const auto x = Values<T>::normal({4, 20, heads.packed()}, 1);
  expect_same_bits_for_any_threads([&] {
    auto qkv = x;
    rope_forward(qkv.tensor(), table.tensor(), heads, kFirst, stream);
    return qkv.bytes();
  });
  auto whole = x;
  rope_forward(whole.tensor(), table.tensor(), heads, kFirst, stream);
  // Token 13 of sequence 2 alone, as generation would rotate it.
  const int64_t begin = (2 * 20 + 13) * heads.packed();
  Values<T> alone({1, 1, heads.packed()});
  for (int64_t i = 0; i < alone.size(); i++) alone.set(i, static_cast<float>(x[begin + i]));
  rope_forward(alone.tensor(), table.tensor(), heads, kFirst + 13, stream);
  EXPECT_EQ(alone.bytes(), whole.bytes(begin, begin + heads.packed()));
}

TEST(RopeForward, RefusesAPositionBeyondTheTable) {
  Stream stream;
  const Heads heads{1, 1, 2};
  Values<float> qkv({1, 2, 6});
  auto table = make_table(2);
  rope_forward(qkv.tensor(), table.tensor(), heads, kPositions - 2, stream);
  EXPECT_THROW(rope_forward(qkv.tensor(), table.tensor(), heads, kPositions - 1, stream),
               std::logic_error);
}

}  // namespace
}  // namespace lockstep::kernels::tests
