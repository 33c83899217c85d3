#include "kernels/embedding.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

constexpr int64_t kVocab = 23, kPositions = 80, kFirst = 3;

template <class T>
struct EmbeddingCase {
  int64_t batch, length, channels;
  Values<int32_t> tokens;
  Values<T> token_table, position_table, y, dy;
  Values<float> dtoken_table, dposition_table;

  EmbeddingCase(int64_t b, int64_t t, int64_t c)
      : batch(b),
        length(t),
        channels(c),
        tokens({b, t}),
        token_table(Values<T>::normal({kVocab, c}, 1)),
        position_table(Values<T>::normal({kPositions, c}, 2)),
        y({b, t, c}),
        dy(Values<T>::normal({b, t, c}, 3)),
        dtoken_table({kVocab, c}, 10.0f),
        dposition_table({kPositions, c}, 20.0f) {
    std::mt19937 random(4);
    // Token 5 is missing, token 0 frequent.
    for (int64_t i = 0; i < b * t; i++) {
      const auto token = static_cast<int32_t>(random() % (2 * kVocab));
      tokens.set(i, token < kVocab && token != 5 ? token : 0);
    }
  }
  void forward() {
    Stream stream;
    embedding_forward(y.tensor(), tokens.tensor(), token_table.tensor(), position_table.tensor(),
                      kFirst, stream);
  }
  void backward() {
    Stream stream;
    embedding_backward(dtoken_table.tensor(), dposition_table.tensor(), dy.tensor(),
                       tokens.tensor(), stream);
  }
};

struct BatchSize {
  int64_t batch, length, channels;
};
constexpr BatchSize kBatchSizes[] = {{1, 1, 1}, {3, 5, 7}, {2, 70, 64}, {5, 1, 1000}, {1, 40, 130}};

template <class T>
class Embedding : public testing::Test {};
TYPED_TEST_SUITE(Embedding, FloatTypes);

TYPED_TEST(Embedding, ForwardAddsTokenAndPosition) {
  using T = TypeParam;
  Stream stream;
  for (const auto [b, t, c] : kBatchSizes) {
    EmbeddingCase<T> test(b, t, c);
    test.forward();
    Values<T> without({b, t, c});
    embedding_forward(without.tensor(), test.tokens.tensor(), test.token_table.tensor(), Tensor(),
                      kFirst, stream);
    for (int64_t i = 0; i < test.y.size(); i++) {
      const double token = test.token_table[static_cast<int64_t>(test.tokens[i / c]) * c + i % c];
      const double want = token + test.position_table[(kFirst + i / c % t) * c + i % c];
      ASSERT_NEAR(test.y[i], want, kRounding * std::abs(want) + 1.01 * storage_error<T>(want));
      ASSERT_EQ(without[i], token);
    }
  }
}

TYPED_TEST(Embedding, BackwardAddsInTheOrderOfTheTokens) {
  for (const auto [b, t, c] : kBatchSizes) {
    EmbeddingCase<TypeParam> test(b, t, c);
    test.backward();
    // The order is promised, so that fp32 additions in that order give the same bits.
    std::vector<float> dtoken(kVocab * c, 10), dposition(kPositions * c, 20);
    for (int64_t i = 0; i < b * t * c; i++) {
      const auto token = static_cast<int64_t>(test.tokens[i / c]);
      dtoken[token * c + i % c] += static_cast<float>(test.dy[i]);
      dposition[i / c % t * c + i % c] += static_cast<float>(test.dy[i]);
    }
    for (int64_t i = 0; i < kVocab * c; i++) ASSERT_EQ(test.dtoken_table[i], dtoken[i]) << i;
    for (int64_t i = 0; i < kPositions * c; i++) {
      ASSERT_EQ(test.dposition_table[i], dposition[i]) << i;
    }
  }
}

TYPED_TEST(Embedding, BackwardWithoutPositions) {
  Stream stream;
  EmbeddingCase<TypeParam> with(3, 5, 7), without(3, 5, 7);
  with.backward();
  embedding_backward(without.dtoken_table.tensor(), Tensor(), without.dy.tensor(),
                     without.tokens.tensor(), stream);
  EXPECT_EQ(without.dtoken_table.bytes(), with.dtoken_table.bytes());
}

// The look-up is linear: <dy, y(token, position)> = <dtoken, token> + <dposition, position>.
TEST(EmbeddingBackward, IsTheTransposeOfForward) {
  EmbeddingCase<float> test(3, 8, 9);
  Stream stream;
  embedding_forward(test.y.tensor(), test.tokens.tensor(), test.token_table.tensor(),
                    test.position_table.tensor(), 0, stream);
  test.backward();
  double forward = 0, backward = 0, magnitude = 0;
  for (int64_t i = 0; i < test.y.size(); i++) {
    forward += test.dy[i] * test.y[i];
    magnitude += 30 * std::abs(test.dy[i]);
  }
  for (int64_t i = 0; i < kVocab * 9; i++) {
    backward += (test.dtoken_table[i] - 10) * test.token_table[i];
  }
  for (int64_t i = 0; i < kPositions * 9; i++) {
    backward += (test.dposition_table[i] - 20) * test.position_table[i];
  }
  EXPECT_NEAR(forward, backward, 32 * kRounding * magnitude);
}

TYPED_TEST(Embedding, BitsDoNotDependOnThreads) {
  expect_same_bits_for_any_threads([] {
    EmbeddingCase<TypeParam> test(4, 60, 33);
    test.forward();
    test.backward();
    return test.y.bytes() + test.dtoken_table.bytes() + test.dposition_table.bytes();
  });
}

TEST(EmbeddingForward, RefusesWhatIsOutsideTheTables) {
  EmbeddingCase<float> test(2, 3, 4);
  Stream stream;
  for (int32_t token : {-1, static_cast<int32_t>(kVocab)}) {
    int32_t tokens[] = {0, 1, 2, 3, token, 4};
    const Tensor bad(tokens, DType::int32, {2, 3});
    EXPECT_THROW(
        embedding_forward(test.y.tensor(), bad, test.token_table.tensor(), Tensor(), 0, stream),
        std::logic_error);
    EXPECT_THROW(
        embedding_backward(test.dtoken_table.tensor(), Tensor(), test.dy.tensor(), bad, stream),
        std::logic_error);
  }
  EXPECT_THROW(embedding_forward(test.y.tensor(), test.tokens.tensor(), test.token_table.tensor(),
                                 test.position_table.tensor(), kPositions - 2, stream),
               std::logic_error);
}

}  // namespace
}  // namespace lockstep::kernels::tests
