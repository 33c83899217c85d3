#pragma once
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lockstep {

// Words and their ids, none of them twice. Made for look-ups of words of which most are not there:
// sixteen bits a word tell nearly all of those, in little memory.
class WordTable {
 public:
  using Word = std::pair<std::string, int32_t>;

  // Of words that are not empty; hash: a function of a string_view to 64 bits.
  template <class Hash>
  WordTable(std::vector<Word> words, const Hash& hash)
      : bits_(std::bit_ceil(words.size() / 4 + 1)),
        slots_(std::bit_ceil(words.size() * 5 / 4 + 1)) {
    for (Word& word : words) {
      const uint64_t hashed = hash(std::string_view(word.first));
      bits_[bits_of(hashed)] |= bit_of(hashed);
      size_t slot = hashed & (slots_.size() - 1);
      while (!slots_[slot].first.empty()) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = std::move(word);
    }
  }

  // The id of the word that has this hash, or null.
  const int32_t* find(std::string_view word, uint64_t hashed) const {
    if ((bits_[bits_of(hashed)] & bit_of(hashed)) == 0) return nullptr;
    for (size_t slot = hashed & (slots_.size() - 1);; slot = (slot + 1) & (slots_.size() - 1)) {
      const auto& [there, id] = slots_[slot];
      if (there == word) return &id;
      if (there.empty()) return nullptr;
    }
  }

 private:
  size_t bits_of(uint64_t hashed) const { return hashed >> 38 & (bits_.size() - 1); }
  static uint64_t bit_of(uint64_t hashed) { return uint64_t{1} << (hashed >> 32 & 63); }

  std::vector<uint64_t> bits_;  // set by the hashes of the words
  std::vector<Word> slots_;     // open addressing, at least a fifth empty
};

}  // namespace lockstep
