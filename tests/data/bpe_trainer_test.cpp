#include "data/bpe_trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "data/bpe_alphabet.h"

namespace lockstep {
namespace {

constexpr int32_t kFirstByte = 1;  // <|endoftext|> is 0

// Words of letters, each with the space before it, as GPT-2's pattern splits them.
std::vector<std::string> random_words(size_t count) {
  std::mt19937 random(7);
  std::vector<std::string> words;
  for (size_t i = 0; i < count; i++) {
    std::string word = " ";
    for (size_t length = 1 + random() % 9; length > 0; length--) {
      word += static_cast<char>('a' + random() % 12);
    }
    words.push_back(std::move(word));
  }
  return words;
}

BpeTrainer trainer_of(const std::vector<std::string>& words) {
  BpeTrainer trainer;
  for (const std::string& word : words) trainer.add_text(word);
  return trainer;
}

// The definition: count all pairs anew, merge the most frequent (of several the one of the smallest
// ids) everywhere.
std::vector<std::string> tokens_by_definition(const std::vector<std::string>& words, int merges) {
  std::vector<std::string> bytes_of{"<|endoftext|>"};
  std::vector<int32_t> id_of_byte(256);
  for (const uint8_t byte : bytes_in_printed_order()) {
    id_of_byte[byte] = static_cast<int32_t>(bytes_of.size());
    bytes_of.emplace_back(1, static_cast<char>(byte));
  }
  std::vector<std::vector<int32_t>> texts;
  for (const std::string& word : words) {
    std::vector<int32_t>& text = texts.emplace_back();
    for (const char byte : word) text.push_back(id_of_byte[static_cast<uint8_t>(byte)]);
  }
  for (int merge = 0; merge < merges; merge++) {
    const size_t size = bytes_of.size();
    std::vector<int> counts(size * size);
    for (const auto& text : texts) {
      for (size_t i = 0; i + 1 < text.size(); i++) counts[size_t(text[i]) * size + text[i + 1]]++;
    }
    const auto best =
        static_cast<size_t>(std::max_element(counts.begin(), counts.end()) - counts.begin());
    const auto left = static_cast<int32_t>(best / size), right = static_cast<int32_t>(best % size);
    bytes_of.push_back(bytes_of[size_t(left)] + bytes_of[size_t(right)]);
    for (auto& text : texts) {
      size_t out = 0;
      for (size_t in = 0; in < text.size(); out++) {
        const bool found = text[in] == left && in + 1 < text.size() && text[in + 1] == right;
        text[out] = found ? static_cast<int32_t>(size) : text[in];
        in += found ? 2 : 1;
      }
      text.resize(out);
    }
  }
  return bytes_of;
}

// 20,000 words: the lists of words that a pair occurs in have gaps of one to three bytes.
TEST(BpeTrainer, MergesByTheDefinition) {
  const std::vector<std::string> words = random_words(20'000);
  const std::vector<std::string> expected = tokens_by_definition(words, 200);
  const Tokenizer tokenizer = trainer_of(words).train(static_cast<int64_t>(expected.size()));
  ASSERT_EQ(tokenizer.vocab_size(), static_cast<int64_t>(expected.size()));
  for (int32_t id = kFirstByte; id < tokenizer.vocab_size(); id++) {
    ASSERT_EQ(tokenizer.token_bytes(id), expected[size_t(id)]) << "id " << id;
  }
}

// Ids above 65,535 take another type in the trainer. 41^3 words occur twice, and so become tokens
// before the letters of one long word, which occurs once, are merged step by step.
TEST(BpeTrainer, MergesTokensOfLargeIds) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO";
  const std::string last = "PQRSTUVWXYZ";
  BpeTrainer trainer;
  trainer.add_text(last);
  std::vector<std::string> words{last};
  for (const char a : kLetters) {
    for (const char b : kLetters) {
      for (const char c : kLetters) words.push_back({a, b, c});
    }
  }
  for (size_t i = 1; i < words.size(); i++) {
    trainer.add_text(words[i]);
    trainer.add_text(words[i]);
  }
  const Tokenizer small = trainer.train(65'536);
  const Tokenizer large = trainer.train(100'000);
  ASSERT_EQ(small.vocab_size(), 65'536);
  for (int32_t id = 0; id < small.vocab_size(); id++) {
    ASSERT_EQ(large.token_bytes(id), small.token_bytes(id)) << "id " << id;
  }
  EXPECT_EQ(large.token_bytes(static_cast<int32_t>(large.vocab_size()) - 1), last);
  for (const std::string& word : words) ASSERT_EQ(large.encode(word).size(), 1u) << word;
}

TEST(BpeTrainer, TextAddedAfterTrainingCounts) {
  BpeTrainer trainer;
  trainer.add_text("abab abab cdcd");
  EXPECT_EQ(trainer.train(258).token_bytes(257), "ab");
  for (int i = 0; i < 3; i++) trainer.add_text("cdcd cdcd");
  EXPECT_EQ(trainer.train(258).token_bytes(257), "cd");
}

TEST(BpeTrainer, EndsWhenNoPairsAreLeft) {
  BpeTrainer trainer;
  trainer.add_text("abc");
  EXPECT_EQ(trainer.train(1000).vocab_size(), 259);  // "ab" and "abc"
  EXPECT_EQ(BpeTrainer().train(1000).vocab_size(), 257);
  EXPECT_THROW(trainer.train(256), UsageError);
}

}  // namespace
}  // namespace lockstep
