#include "data/word_table.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace lockstep {
namespace {

std::string word_of(int i) {
  return (i % 2 == 0 ? "w" : "a word of more bytes ") + std::to_string(i);
}

// Whatever the hash is worth: a good one, one that starts all words in seven places, and one by
// which all words are the same.
TEST(WordTable, FindsItsWordsAndNoOther) {
  const std::vector<std::function<uint64_t(std::string_view)>> hashes = {
      [](std::string_view word) { return std::hash<std::string_view>{}(word); },
      [](std::string_view word) { return std::hash<std::string_view>{}(word) % 7; },
      [](std::string_view) { return ~uint64_t{0}; }};
  for (const auto& hash : hashes) {
    for (const int count : {0, 1, 2, 3, 100}) {
      std::vector<WordTable::Word> words;
      for (int i = 0; i < count; i++) words.emplace_back(word_of(i), 1000 - i);
      const WordTable table(words, hash);
      for (int i = 0; i < 2 * count + 10; i++) {
        const std::string word = word_of(i);
        const int32_t* id = table.find(word, hash(word));
        ASSERT_EQ(id != nullptr, i < count) << word;
        if (id != nullptr) {
          EXPECT_EQ(*id, 1000 - i);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
