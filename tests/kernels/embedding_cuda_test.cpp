#include "kernels/embedding.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

constexpr int64_t kVocab = 23, kPositions = 80, kFirst = 3;

// Token 5 is missing, token 0 frequent.
Values<int32_t> some_tokens(int64_t batch, int64_t length) {
  Values<int32_t> tokens({batch, length});
  std::mt19937 random(4);
  for (int64_t i = 0; i < batch * length; i++) {
    const auto token = static_cast<int32_t>(random() % (2 * kVocab));
    // As floats, which are exact up to 2^24.
    tokens.set(i, static_cast<float>(token < kVocab && token != 5 ? token : 0));
  }
  return tokens;
}

struct BatchSize {
  int64_t batch, length, channels;
};
// Last, more tokens than a run of the sort has, in several runs and the rest of one.
constexpr BatchSize kBatchSizes[] = {{1, 1, 1},    {3, 5, 7},    {2, 70, 64},
                                     {5, 1, 1000}, {1, 40, 130}, {90, 61, 8}};

template <class T>
class EmbeddingCuda : public CudaTest {};
TYPED_TEST_SUITE(EmbeddingCuda, FloatTypes);

TYPED_TEST(EmbeddingCuda, ForwardGivesTheBitsOfTheCpu) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  for (const auto [b, t, c] : kBatchSizes) {
    for (const int64_t shift : {0, 3}) {
      auto tokens = some_tokens(b, t);
      auto table = Values<T>::normal({kVocab, c}, 1),
           positions = Values<T>::normal({kPositions, c}, 2);
      Values<T> y({b, t, c});
      OnDevice<int32_t> device_tokens(tokens, stream, shift);
      OnDevice<T> device_table(table, stream, shift), device_positions(positions, stream);
      OnDevice<T> device_y(y, stream);
      for (const bool with_positions : {true, false}) {
        embedding_forward(y.tensor(), tokens.tensor(), table.tensor(),
                          with_positions ? positions.tensor() : Tensor(), kFirst, host);
        embedding_forward(device_y.tensor(), device_tokens.tensor(), device_table.tensor(),
                          with_positions ? device_positions.tensor() : Tensor(), kFirst, stream);
        ASSERT_EQ(device_y.values().bytes(), y.bytes()) << b << " " << t << " " << c;
      }
    }
  }
}

// Both add up in the order of the tokens, and nothing else rounds.
TYPED_TEST(EmbeddingCuda, BackwardGivesTheBitsOfTheCpu) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  for (const auto [b, t, c] : kBatchSizes) {
    for (const int64_t shift : {0, 1}) {
      auto tokens = some_tokens(b, t);
      auto dy = Values<T>::normal({b, t, c}, 3);
      auto dtable = Values<float>::normal({kVocab, c}, 4);
      auto dpositions = Values<float>::normal({kPositions, c}, 5);
      OnDevice<int32_t> device_tokens(tokens, stream);
      OnDevice<T> device_dy(dy, stream, shift);
      OnDevice<float> device_dtable(dtable, stream), device_dpositions(dpositions, stream);
      for (const bool with_positions : {true, false}) {
        embedding_backward(dtable.tensor(), with_positions ? dpositions.tensor() : Tensor(),
                           dy.tensor(), tokens.tensor(), host);
        embedding_backward(device_dtable.tensor(),
                           with_positions ? device_dpositions.tensor() : Tensor(),
                           device_dy.tensor(), device_tokens.tensor(), stream);
      }
      ASSERT_EQ(device_dtable.values().bytes(), dtable.bytes()) << b << " " << t << " " << c;
      ASSERT_EQ(device_dpositions.values().bytes(), dpositions.bytes())
          << b << " " << t << " " << c;
    }
  }
}

TYPED_TEST(EmbeddingCuda, BackwardOfOneTokenOnly) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  constexpr int64_t kTokens = 2100, kChannels = 16;
  Values<int32_t> tokens({1, kTokens}, 22);
  auto dy = Values<T>::normal({1, kTokens, kChannels}, 3);
  Values<float> dtable({kVocab, kChannels}, 1);
  OnDevice<int32_t> device_tokens(tokens, stream);
  OnDevice<T> device_dy(dy, stream);
  OnDevice<float> device_dtable(dtable, stream);
  embedding_backward(dtable.tensor(), Tensor(), dy.tensor(), tokens.tensor(), host);
  embedding_backward(device_dtable.tensor(), Tensor(), device_dy.tensor(), device_tokens.tensor(),
                     stream);
  EXPECT_EQ(device_dtable.values().bytes(), dtable.bytes());
}

// The device cannot throw: such a token gives NaN, adds nothing, and leaves the others alone.
TEST_F(CudaTest, EmbeddingStaysInsideTheTable) {
  constexpr int64_t kChannels = 4;
  Stream stream(Device::cuda);
  Values<int32_t> tokens({2, 3});
  const float some[] = {0, -1, 22, 23, 0, 1e9f};
  for (int64_t i = 0; i < 6; i++) tokens.set(i, some[i]);
  OnDevice<int32_t> device_tokens(tokens, stream);
  // The table is a part of a larger one, so that a look behind it would be seen.
  auto table_values = Values<float>::normal({kVocab + 2, kChannels}, 1);
  OnDevice<float> table(table_values, stream);
  OnDevice<float> y(Values<float>({2, 3, kChannels}), stream);
  embedding_forward(y.tensor(), device_tokens.tensor(), table.tensor().slice(0, kVocab), Tensor(),
                    0, stream);
  for (int64_t i = 0; i < 6 * kChannels; i++) {
    const int64_t token = i / kChannels;
    if (token == 1 || token == 3 || token == 5) {
      EXPECT_TRUE(std::isnan(y.values()[i])) << i;
    } else {
      const auto row = static_cast<int64_t>(some[token]);
      EXPECT_EQ(y.values()[i], table_values[row * kChannels + i % kChannels]) << i;
    }
  }
  OnDevice<float> dtable(Values<float>({kVocab + 2, kChannels}), stream);
  OnDevice<float> dy(Values<float>({2, 3, kChannels}, 1), stream);
  embedding_backward(dtable.tensor().slice(0, kVocab), Tensor(), dy.tensor(),
                     device_tokens.tensor(), stream);
  for (int64_t i = 0; i < (kVocab + 2) * kChannels; i++) {
    const int64_t row = i / kChannels;
    EXPECT_EQ(dtable.values()[i], row == 0 ? 2 : row == 22 ? 1 : 0) << i;
  }
}

TEST_F(CudaTest, EmbeddingOfNoTokens) {
  Stream stream(Device::cuda);
  OnDevice<int32_t> tokens(Values<int32_t>({0, 4}), stream);
  OnDevice<float> table(Values<float>({kVocab, 8}, 1), stream), y(Values<float>({0, 4, 8}), stream);
  embedding_forward(y.tensor(), tokens.tensor(), table.tensor(), table.tensor(), 0, stream);
  embedding_backward(table.tensor(), table.tensor(), y.tensor(), tokens.tensor(), stream);
  EXPECT_EQ(table.values().bytes(), Values<float>({kVocab, 8}, 1).bytes());
}

}  // namespace
}  // namespace lockstep::kernels::tests
