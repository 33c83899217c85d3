#include "model/decoder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "kernels/reduce.h"
#include "model/parameter_table.h"

// Against published models: golden_test.cpp.
namespace lockstep {
namespace {

ModelConfig small(Family family) {
  ModelConfig config = family_defaults(family);
  config.vocab_size = 31;
  config.context_length = 40;
  config.num_layers = 2;
  config.hidden_size = 32;
  config.num_heads = 4;
  config.num_kv_heads = family == Family::gpt2 ? 4 : 2;
  fill_in_sizes(config);
  return config;
}

class DecoderOf : public ::testing::TestWithParam<Family> {
 protected:
  DecoderOf() : config_(small(GetParam())), tokens_(40) {
    const ParameterTable table(config_);
    weights_ = Buffer(DType::fp32, {table.size()});
    initialize(table, config_, 1, weights_.tensor());
    for (int i = 0; i < 40; i++) tokens_[i] = i * 7 % 31;
  }
  Tensor tokens(int64_t begin, int64_t end) {
    return Tensor(tokens_.data() + begin, DType::int32, {end - begin});
  }
  // The states of the last `wanted` tokens.
  std::vector<float> forward(Decoder& decoder, KvCache& cache, int64_t begin, int64_t end,
                             int64_t wanted) {
    const Buffer hidden(DType::fp32, {wanted, config_.hidden_size});
    decoder.forward(tokens(begin, end), cache, hidden.tensor());
    const auto* first = hidden.tensor().as<float>();
    return {first, first + hidden.tensor().size()};
  }
  ModelConfig config_;
  Buffer weights_;
  std::vector<int32_t> tokens_;
};

// Going back and on again leaves nothing behind: the same calls give the same bits.
TEST_P(DecoderOf, TruncateForgets) {
  Decoder decoder(config_, weights_.tensor());
  KvCache cache(config_, 40, DType::fp32);
  forward(decoder, cache, 0, 10, 1);
  const auto first = forward(decoder, cache, 10, 20, 10);
  cache.truncate(10);
  forward(decoder, cache, 25, 40, 1);
  cache.truncate(10);
  EXPECT_EQ(cache.length(), 10);
  EXPECT_EQ(forward(decoder, cache, 10, 20, 10), first);
  cache.truncate(0);
  KvCache fresh(config_, 40, DType::fp32);
  EXPECT_EQ(forward(decoder, cache, 0, 20, 20), forward(decoder, fresh, 0, 20, 20));
}

// States that only part of the last chunks hold.
TEST_P(DecoderOf, GivesTheLastStates) {
  Decoder decoder(config_, weights_.tensor(), 8);
  KvCache cache(config_, 40, DType::fp32);
  const auto all = forward(decoder, cache, 0, 29, 29);
  for (const int64_t wanted : {1, 5, 6, 13, 29}) {
    cache.truncate(0);
    const auto last = forward(decoder, cache, 0, 29, wanted);
    EXPECT_EQ(last, std::vector(all.end() - wanted * config_.hidden_size, all.end())) << wanted;
  }
}

// A cache may be shorter than the context; neither may be passed, and nothing is kept of a call
// that was refused.
TEST_P(DecoderOf, RefusesMoreThanThereIsRoomFor) {
  Decoder decoder(config_, weights_.tensor());
  KvCache shorter(config_, 12, DType::fp32), longer(config_, 50, DType::fp32);
  forward(decoder, shorter, 0, 12, 1);
  EXPECT_THROW(forward(decoder, shorter, 12, 13, 1), std::logic_error);
  forward(decoder, longer, 0, 40, 1);
  EXPECT_THROW(forward(decoder, longer, 0, 1, 1), std::logic_error);
  EXPECT_EQ(longer.length(), 40);
  longer.truncate(0);
  EXPECT_THROW(forward(decoder, longer, 0, 4, 5), std::logic_error);  // states of 5 of 4 tokens
  EXPECT_THROW(longer.truncate(1), std::logic_error);
}

// bf16 keeps 8 bits: after some twenty roundings logits of size 0.1 (initial weights of 0.02 on 32
// channels of size 1) are right to 20^(1/2) * 2^-9 of it; four times that.
TEST_P(DecoderOf, WorksInBf16) {
  const ParameterTable table(config_);
  const Buffer narrow(DType::bf16, {table.size()});
  Stream stream;
  kernels::cast(narrow.tensor(), weights_.tensor(), stream);
  kernels::cast(weights_.tensor(), narrow.tensor(), stream);
  const auto logits = [&](const Buffer& weights) {
    const DType dtype = weights.tensor().dtype();
    Decoder decoder(config_, weights.tensor());
    KvCache cache(config_, 40, dtype);
    EXPECT_EQ(cache.size_bytes(), 2 * 2 * config_.num_kv_heads * 40 * 8 * size_bytes(dtype));
    const Buffer hidden(dtype, {20, config_.hidden_size});
    decoder.forward(tokens(0, 20), cache, hidden.tensor());
    const Buffer out(DType::fp32, {20, config_.vocab_size});
    decoder.logits(out.tensor(), hidden.tensor());
    const auto* first = out.tensor().as<float>();
    return std::vector<float>(first, first + out.tensor().size());
  };
  const auto wide = logits(weights_), rounded = logits(narrow);
  for (size_t i = 0; i < wide.size(); i++) EXPECT_NEAR(rounded[i], wide[i], 0.0035) << i;
}

INSTANTIATE_TEST_SUITE_P(Both, DecoderOf, ::testing::Values(Family::gpt2, Family::llama),
                         [](const auto& test) { return std::string(name(test.param)); });

}  // namespace
}  // namespace lockstep
