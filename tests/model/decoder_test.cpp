#include "model/decoder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "core/thread_pool.h"
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

using kernels::Rows;

class DecoderOf : public ::testing::TestWithParam<Family> {
 protected:
  DecoderOf() : config_(small(GetParam())), tokens_(40) {
    const ParameterTable table(config_);
    weights_ = Buffer(DType::fp32, {table.size()});
    initialize(table, config_, 1, weights_.tensor());
    for (int i = 0; i < 40; i++) tokens_[i] = i * 7 % 31;
  }
  void TearDown() override { set_num_threads(1); }

  std::span<const int32_t> tokens(int64_t begin, int64_t end) {
    return std::span(tokens_).subspan(begin, end - begin);
  }
  std::vector<float> forward(Decoder& decoder, std::span<const NewTokens> batch, Rows rows) {
    int64_t wanted = 0;
    for (const NewTokens& n : batch) wanted += n.wanted;
    const Buffer hidden(DType::fp32, {wanted, config_.hidden_size});
    decoder.forward(batch, rows, hidden.tensor());
    const auto* first = hidden.tensor().as<float>();
    return {first, first + hidden.tensor().size()};
  }
  // The states of the last `wanted` tokens.
  std::vector<float> forward(Decoder& decoder, KvSequence& sequence, int64_t begin, int64_t end,
                             int64_t wanted, Rows rows = Rows::in_tiles) {
    const NewTokens all{&sequence, tokens(begin, end), wanted};
    return forward(decoder, std::span(&all, 1), rows);
  }
  ModelConfig config_;
  Buffer weights_;
  std::vector<int32_t> tokens_;
};

// Going back and on again leaves nothing behind: the same calls give the same bits.
TEST_P(DecoderOf, TruncateForgets) {
  Decoder decoder(config_, weights_.tensor());
  KvPages pages(config_, 8, DType::fp32);
  KvSequence sequence(pages), fresh(pages);
  forward(decoder, sequence, 0, 10, 1);
  const auto first = forward(decoder, sequence, 10, 20, 10);
  sequence.truncate(10);
  forward(decoder, sequence, 25, 40, 1);
  sequence.truncate(10);
  EXPECT_EQ(sequence.length(), 10);
  EXPECT_EQ(sequence.num_pages(), 2);
  EXPECT_EQ(forward(decoder, sequence, 10, 20, 10), first);
  sequence.truncate(0);
  EXPECT_EQ(forward(decoder, sequence, 0, 20, 20), forward(decoder, fresh, 0, 20, 20));
}

// States that only part of the last chunks hold, or none.
TEST_P(DecoderOf, GivesTheLastStates) {
  Decoder decoder(config_, weights_.tensor(), 8);
  KvPages pages(config_, 16, DType::fp32);
  KvSequence sequence(pages);
  const auto all = forward(decoder, sequence, 0, 29, 29);
  for (const int64_t wanted : {0, 1, 5, 6, 13, 29}) {
    sequence.truncate(0);
    const auto last = forward(decoder, sequence, 0, 29, wanted);
    EXPECT_EQ(last, std::vector(all.end() - wanted * config_.hidden_size, all.end())) << wanted;
  }
}

// How a sequence is parted into calls, how large chunks and pages are, how many threads there are:
// none of it is in the bits.
TEST_P(DecoderOf, TokensHaveBitsOfTheirOwn) {
  KvPages whole_page(config_, 40, DType::fp32), small_pages(config_, 4, DType::fp32);
  for (const Rows rows : {Rows::in_tiles, Rows::one_by_one}) {
    Decoder decoder(config_, weights_.tensor()), small_chunks(config_, weights_.tensor(), 7);
    KvSequence plain(whole_page);
    const auto want = forward(decoder, plain, 0, 40, 40, rows);
    for (const auto& parts :
         {std::vector<int64_t>{40}, {1, 1, 2, 3, 4, 29}, {33, 1, 6}, {5, 35}, {39, 1}}) {
      set_num_threads(static_cast<int>(parts.size()) % 3 + 1);
      KvSequence sequence(small_pages);
      std::vector<float> got;
      int64_t begin = 0;
      for (const int64_t count : parts) {
        const auto states = forward(small_chunks, sequence, begin, begin + count, count, rows);
        got.insert(got.end(), states.begin(), states.end());
        begin += count;
      }
      EXPECT_EQ(got, want) << parts.size() << " parts";
    }
  }
}

// Nor are the other sequences, or the place among them.
TEST_P(DecoderOf, SequencesOfABatchDoNotMeet) {
  Decoder decoder(config_, weights_.tensor(), 16);
  KvPages pages(config_, 4, DType::fp32);
  const std::vector<std::pair<int64_t, int64_t>> parts{{0, 17}, {3, 4}, {20, 40}, {1, 2}, {8, 16}};
  for (const Rows rows : {Rows::in_tiles, Rows::one_by_one}) {
    std::vector<float> want;
    for (const auto& [begin, end] : parts) {
      KvSequence alone(pages);
      const auto prompt = forward(decoder, alone, begin, end, end - begin, rows);
      const auto next = forward(decoder, alone, 5, 6, 1, rows);
      want.insert(want.end(), prompt.begin(), prompt.end());
      want.insert(want.end(), next.begin(), next.end());
    }
    for (int turn = 0; turn < 5; turn++) {
      set_num_threads(turn % 3 + 1);
      std::vector<KvSequence> sequences(parts.size(), KvSequence(pages));
      std::vector<NewTokens> prompts, next;
      for (size_t i = 0; i < parts.size(); i++) {
        const auto& [begin, end] = parts[(i + turn) % parts.size()];
        prompts.push_back({&sequences[i], tokens(begin, end), end - begin});
        next.push_back({&sequences[i], tokens(5, 6), 1});
      }
      const auto of_prompts = forward(decoder, prompts, rows);
      const auto of_next = forward(decoder, next, rows);
      std::vector<float> got;
      for (size_t n = 0; n < parts.size(); n++) {
        const size_t i = (n + parts.size() - turn % parts.size()) % parts.size();
        int64_t first = 0;
        for (size_t before = 0; before < i; before++) first += prompts[before].wanted;
        const auto state = [&](const std::vector<float>& all, int64_t row) {
          return all.begin() + row * config_.hidden_size;
        };
        got.insert(got.end(), state(of_prompts, first),
                   state(of_prompts, first + prompts[i].wanted));
        got.insert(got.end(), state(of_next, i), state(of_next, i + 1));
      }
      EXPECT_EQ(got, want) << "turn " << turn;
    }
  }
}

// The context may not be passed, and nothing is kept of a call that was refused.
TEST_P(DecoderOf, RefusesMoreThanThereIsRoomFor) {
  Decoder decoder(config_, weights_.tensor());
  KvPages pages(config_, 4, DType::fp32);
  KvSequence sequence(pages);
  forward(decoder, sequence, 0, 40, 1);
  EXPECT_THROW(forward(decoder, sequence, 0, 1, 1), std::logic_error);
  EXPECT_EQ(sequence.length(), 40);
  sequence.truncate(3);
  EXPECT_THROW(forward(decoder, sequence, 0, 4, 5), std::logic_error);  // states of 5 of 4 tokens
  EXPECT_THROW(sequence.truncate(4), std::logic_error);
  tokens_[20] = 31;  // not in the vocabulary
  EXPECT_THROW(forward(decoder, sequence, 15, 25, 1), std::logic_error);
  EXPECT_EQ(sequence.length(), 3);
  EXPECT_THROW(KvPages(config_, 6, DType::fp32), std::logic_error);
}

// bf16 keeps 8 bits: after some twenty roundings logits of size 0.1 (initial weights of 0.02 on 32
// channels of size 1) are right to 20^(1/2) * 2^-9 of it; four times that.
TEST_P(DecoderOf, WorksInBf16) {
  const ParameterTable table(config_);
  const Buffer narrow(DType::bf16, {table.size()});
  Stream stream;
  kernels::cast(narrow.tensor(), weights_.tensor(), stream);
  kernels::cast(weights_.tensor(), narrow.tensor(), stream);
  const auto logits = [&](const Buffer& weights, Rows rows) {
    const DType dtype = weights.tensor().dtype();
    Decoder decoder(config_, weights.tensor());
    KvPages pages(config_, 8, dtype);
    EXPECT_EQ(pages.page_bytes(), 2 * 2 * config_.num_kv_heads * 8 * 8 * size_bytes(dtype));
    KvSequence sequence(pages);
    const Buffer hidden(dtype, {20, config_.hidden_size});
    const NewTokens all{&sequence, tokens(0, 20), 20};
    decoder.forward(std::span(&all, 1), rows, hidden.tensor());
    const Buffer out(DType::fp32, {20, config_.vocab_size});
    decoder.logits(out.tensor(), hidden.tensor());
    const auto* first = out.tensor().as<float>();
    return std::vector<float>(first, first + out.tensor().size());
  };
  for (const Rows rows : {Rows::in_tiles, Rows::one_by_one}) {
    const auto wide = logits(weights_, rows), rounded = logits(narrow, rows);
    for (size_t i = 0; i < wide.size(); i++) EXPECT_NEAR(rounded[i], wide[i], 0.0035) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Both, DecoderOf, ::testing::Values(Family::gpt2, Family::llama),
                         [](const auto& test) { return std::string(name(test.param)); });

}  // namespace
}  // namespace lockstep
