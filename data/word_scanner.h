#pragma once
#include <optional>
#include <span>
#include <string_view>

namespace lockstep {

// Splits text by one of the patterns that most tokenizers have (GPT-2's, cl100k's, Llama 3's,
// Qwen 2's, o200k's), in code written for it instead of a regular expression: the same words, at
// many times the speed. Every byte is in a word. Letters, numbers, ... are those of Unicode 16.
class WordScanner {
 public:
  // For the exact text of a known pattern, in the dialect of tokenizer files; none for another.
  static std::optional<WordScanner> of_pattern(std::string_view pattern);

  // Puts the words of `text`, which must be valid UTF-8 and not empty, from its beginning into
  // `words` until it is full or the text ends; returns how many. What comes after them goes on as
  // if it had been part of the same call: no pattern looks back.
  size_t scan(std::string_view text, std::span<std::string_view> words) const {
    return scan_(text, words);
  }

 private:
  using Scan = size_t (*)(std::string_view text, std::span<std::string_view> words);
  explicit WordScanner(Scan function) : scan_(function) {}
  Scan scan_;
};

}  // namespace lockstep
