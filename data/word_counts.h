#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

// Distinct words, in the order in which they first came, and how often each occurred: a hash table
// of indices into one text.
class WordCounts {
 public:
  void add(std::string_view word, int64_t count = 1);
  // As if each of the other's words had been added here.
  void add(const WordCounts& other);

  // Frees what only finding words needs; adding one makes it again.
  void drop_index() { slots_ = {}; }

  size_t size() const { return counts_.size(); }
  int64_t count(size_t i) const { return counts_[i]; }
  std::string_view word(size_t i) const {
    return std::string_view(text_).substr(begin_[i], begin_[i + 1] - begin_[i]);
  }
  // All words, one after the other, and where each begins there.
  std::string_view text() const { return text_; }
  size_t begin(size_t i) const { return begin_[i]; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Slot {
    uint32_t tag = 0;  // of the word's hash: few words are compared in vain
    uint32_t index = kNone;
  };

  // Where the word is, or would be.
  Slot& slot_of(std::string_view word, uint64_t hash);
  void grow();

  std::string text_;
  std::vector<size_t> begin_{0};  // one more than there are words
  std::vector<int64_t> counts_;
  std::vector<Slot> slots_;
};

}  // namespace lockstep
