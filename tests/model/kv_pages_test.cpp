#include "model/kv_pages.h"

#include <gtest/gtest.h>

#include <list>
#include <random>

#include "model/decoder.h"
#include "model/parameter_table.h"

// That pages in small pieces, shared and copied, hold what a plain cache would.
namespace lockstep {
namespace {

using kernels::Rows;

constexpr int64_t kContext = 40;

ModelConfig small() {
  ModelConfig config = family_defaults(Family::llama);
  config.vocab_size = 31;
  config.context_length = kContext;
  config.num_layers = 2;
  config.hidden_size = 32;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  fill_in_sizes(config);
  return config;
}

class KvPagesTest : public ::testing::Test {
 protected:
  KvPagesTest() {
    const ParameterTable table(config_);
    weights_ = Buffer(DType::fp32, {table.size()});
    initialize(table, config_, 1, weights_.tensor());
    decoder_.emplace(config_, weights_.tensor(), 16);
  }
  // The states of all tokens.
  std::vector<float> forward(KvSequence& sequence, std::span<const int32_t> tokens, Rows rows) {
    const auto count = static_cast<int64_t>(tokens.size());
    const Buffer hidden(DType::fp32, {count, config_.hidden_size});
    const NewTokens all{&sequence, tokens, count};
    decoder_->forward(std::span(&all, 1), rows, hidden.tensor());
    const auto* first = hidden.tensor().as<float>();
    return {first, first + count * config_.hidden_size};
  }
  const ModelConfig config_ = small();
  Buffer weights_;
  std::optional<Decoder> decoder_;
};

// A request, and what it has been through.
struct Grown {
  KvSequence sequence;
  std::vector<int32_t> tokens;
  size_t prompt_size;
};

// Random arrivals (many with the same beginning), lengths, forks, steps back and cancellations: the
// states after each step are those of the same tokens in a cache of one page of its own.
TEST_F(KvPagesTest, HoldWhatAPlainCacheHolds) {
  std::mt19937 random(5);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  KvPages pages(config_, 4, DType::fp32), plain(config_, kContext, DType::fp32);
  std::vector<std::vector<int32_t>> beginnings(3);
  for (auto& beginning : beginnings) {
    for (int i = 0; i < 17; i++) beginning.push_back(static_cast<int32_t>(below(31)));
  }
  std::list<Grown> live;
  int64_t shared = 0, forked = 0, most_pages = 0;
  for (int step = 0; step < 1500; step++) {
    const size_t what = below(10);
    if (live.empty() || what == 0) {
      std::vector<int32_t> tokens = beginnings[below(3)];
      tokens.resize(1 + below(17));
      for (size_t n = below(6); n > 0; n--) tokens.push_back(static_cast<int32_t>(below(31)));
      Grown& added = live.emplace_back(KvSequence(pages), tokens, tokens.size());
      const int64_t found = added.sequence.share(tokens);
      EXPECT_EQ(found % 4, 0);
      shared += found;
      forward(added.sequence, std::span(tokens).subspan(found), Rows::in_tiles);
      added.sequence.publish(tokens);
    } else {
      auto at = live.begin();
      std::advance(at, below(live.size()));
      if (what <= 2) {
        live.erase(at);
      } else if (what == 3) {
        live.push_back(*at);
        forked++;
      } else if (what == 4) {
        const size_t kept = at->prompt_size + below(at->tokens.size() - at->prompt_size + 1);
        at->tokens.resize(kept);
        at->sequence.truncate(static_cast<int64_t>(kept));
      } else if (at->tokens.size() < kContext) {
        at->tokens.push_back(static_cast<int32_t>(below(31)));
        const auto got = forward(at->sequence, std::span(&at->tokens.back(), 1), Rows::one_by_one);
        KvSequence own(plain);
        const std::span<const int32_t> all = at->tokens;
        forward(own, all.first(at->prompt_size), Rows::in_tiles);
        auto want = forward(own, all.subspan(at->prompt_size), Rows::one_by_one);
        want.erase(want.begin(), want.end() - config_.hidden_size);
        ASSERT_EQ(got, want) << "step " << step;
      }
    }
    // Each sequence has the pages that its tokens need; none is lost, none is held for nothing.
    int64_t held = 0;
    for (const Grown& grown : live) {
      ASSERT_EQ(grown.sequence.length(), static_cast<int64_t>(grown.tokens.size()));
      ASSERT_EQ(grown.sequence.num_pages(), pages.pages_for(grown.sequence.length()));
      held += grown.sequence.num_pages();
    }
    ASSERT_LE(pages.in_use(), held);
    most_pages = std::max(most_pages, pages.in_use());
  }
  EXPECT_GT(shared, 100);
  EXPECT_GT(forked, 50);
  live.clear();
  EXPECT_EQ(pages.in_use(), 0);
  EXPECT_EQ(pages.allocated(), most_pages);
}

TEST_F(KvPagesTest, AreSharedUpToWhereTokensDiffer) {
  KvPages pages(config_, 4, DType::fp32);
  std::vector<int32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9};
  {
    KvSequence first(pages);
    forward(first, tokens, Rows::in_tiles);
    EXPECT_EQ(KvSequence(pages).share(tokens), 0);  // not yet published
    first.publish(tokens);
    EXPECT_EQ(pages.in_use(), 3);
    const auto found = [&](std::vector<int32_t> wanted) {
      KvSequence sequence(pages);
      const int64_t length = sequence.share(wanted);
      EXPECT_EQ(pages.in_use(), 3);
      return length;
    };
    EXPECT_EQ(found({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 8);
    EXPECT_EQ(found({1, 2, 3, 4, 5, 6, 7, 8, 0}), 8);
    EXPECT_EQ(found({1, 2, 3, 4, 5, 6, 7, 8}), 4);  // the last token is to be computed
    EXPECT_EQ(found({1, 2, 3, 4, 5, 6, 0, 8, 9}), 4);
    EXPECT_EQ(found({0, 2, 3, 4, 5, 6, 7, 8, 9}), 0);
    EXPECT_EQ(found({5, 6, 7, 8, 9}), 0);  // the same tokens after others are not the same
    // Who goes back into a page and writes it anew takes it away from others.
    first.truncate(2);
    forward(first, std::vector<int32_t>{30, 30, 30}, Rows::in_tiles);
    EXPECT_EQ(KvSequence(pages).share(tokens), 0);
  }
  EXPECT_EQ(pages.in_use(), 0);
  EXPECT_EQ(KvSequence(pages).share(tokens), 0);  // gone with who held them
}

// Only what is written is copied: a fork costs nothing, its first token the last page.
TEST_F(KvPagesTest, AreCopiedWhenTheyAreWritten) {
  KvPages pages(config_, 4, DType::fp32);
  KvSequence first(pages);
  forward(first, std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8, 9}, Rows::in_tiles);
  std::vector<KvSequence> forks(5, first);
  EXPECT_EQ(pages.in_use(), 3);
  for (int32_t i = 0; i < 5; i++) {
    forward(forks[i], std::vector<int32_t>{i}, Rows::one_by_one);
    EXPECT_EQ(pages.in_use(), 4 + i);
  }
  forks.clear();
  EXPECT_EQ(pages.in_use(), 3);
  EXPECT_EQ(pages.allocated(), 8);
  pages.release_free();
  EXPECT_EQ(pages.in_use(), 3);
  EXPECT_EQ(pages.allocated(), 3);
}

}  // namespace
}  // namespace lockstep
