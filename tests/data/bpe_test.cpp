#include "data/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "data/bpe_trainer.h"
#include "data/tokenizer.h"

namespace lockstep {
namespace {

using Ids = std::vector<int32_t>;
using Merges = std::vector<BpeMerger::Merge>;

std::array<int32_t, 256> byte_ids() {
  std::array<int32_t, 256> ids;
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

// Merges of random tokens, most of them of tokens that are merges; the letters are a to d. The ids
// go down from `last`.
Merges random_merges(std::mt19937& random, int count, int32_t last) {
  Merges merges;
  std::set<std::pair<int32_t, int32_t>> seen;
  Ids tokens{'a', 'b', 'c', 'd'};
  for (int i = 0; i < count; i++) {
    const int32_t left = tokens[random() % tokens.size()];
    const int32_t right = tokens[random() % tokens.size()];
    if (!seen.emplace(left, right).second) continue;
    merges.push_back({left, right, last - i});
    tokens.push_back(last - i);
  }
  std::shuffle(merges.begin(), merges.end(), random);
  return merges;
}

// The definition: each time the pair of the lowest rank, the leftmost of them.
Ids by_definition(const Merges& merges, const std::string& word) {
  Ids ids(word.begin(), word.end());
  const auto rank_at = [&](size_t i) {
    return std::find_if(merges.begin(), merges.end(), [&](const BpeMerger::Merge& merge) {
      return merge.left == ids[i] && merge.right == ids[i + 1];
    });
  };
  for (;;) {
    auto best = merges.end();
    size_t place = 0;
    for (size_t i = 0; i + 1 < ids.size(); i++) {
      if (const auto merge = rank_at(i); merge < best) {
        best = merge;
        place = i;
      }
    }
    if (best == merges.end()) return ids;
    ids[place] = best->result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

std::string random_word(std::mt19937& random, size_t size) {
  std::string word;
  for (size_t i = 0; i < size; i++) word += static_cast<char>('a' + random() % 4);
  return word;
}

// Words on both sides of kShortWord, from which on another method merges. All bits of the last id
// are ones, as are those of what is beside a word.
TEST(BpeMerger, MergesByTheDefinition) {
  std::mt19937 random(5);
  for (int round = 0; round < 20; round++) {
    const Merges merges = random_merges(random, 10 + 20 * round, round % 2 == 0 ? 0x3FF : 0xFFFFF);
    const BpeMerger merger(byte_ids(), merges);
    for (size_t size = 0; size < BpeMerger::kShortWord + 10; size++) {
      const std::string word = random_word(random, size);
      Ids ids;
      merger.encode(word, ids);
      ASSERT_EQ(ids, by_definition(merges, word)) << word;
    }
  }
}

// "bc" is merged first, so that no word becomes the token "abc".
TEST(Tokenizer, AWordBecomesATokenOnlyByMerges) {
  const Tokenizer bytes = Tokenizer::from_merges({}, {});
  const int32_t a = bytes.encode("a")[0], b = bytes.encode("b")[0], c = bytes.encode("c")[0];
  const Tokenizer tokenizer = Tokenizer::from_merges({}, {{b, c}, {a, b}, {257, c}});
  ASSERT_EQ(tokenizer.decode(Ids{258}), "abc");
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{a, 256}));
  EXPECT_EQ(tokenizer.encode("ab"), Ids{257});
}

// What a thread remembers of words changes nothing: of two tokenizers in turn, and of words that
// differ in zeros at their end.
TEST(Tokenizer, RememberedWordsHaveTheIdsOfNewOnes) {
  BpeTrainer one, two;
  one.add_text("the then there abcdefgh abcdefghi abcdefghij");
  two.add_text("the hen here zabcdefgh bcdefghi");
  const Tokenizer tokenizers[] = {one.train(300), two.train(280)};
  std::mt19937 random(9);
  std::vector<std::string> words;
  for (int i = 0; i < 1500; i++) {
    std::string word = random_word(random, 1 + random() % 20);
    if (i % 3 == 0) {
      word.assign(1 + random() % 4, '\0');
      word[0] = '!';
    }
    words.push_back(std::move(word));
    words.push_back(words[random() % words.size()]);
  }
  for (size_t i = 0; i < words.size(); i += 100) {
    std::string text;
    for (size_t j = i; j < i + 100; j++) text += " " + words[j];
    for (const Tokenizer& tokenizer : tokenizers) {
      Ids alone;
      std::thread([&] { alone = tokenizer.encode(text); }).join();  // which remembers nothing
      EXPECT_EQ(tokenizer.decode(alone), text);
      EXPECT_EQ(tokenizer.encode(text), alone);
      EXPECT_EQ(tokenizer.encode(text), alone);
    }
  }
}

}  // namespace
}  // namespace lockstep
