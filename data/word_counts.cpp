#include "data/word_counts.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "core/check.h"

namespace lockstep {
namespace {

uint64_t hash_of(std::string_view word) { return XXH3_64bits(word.data(), word.size()); }

}  // namespace

void WordCounts::add(std::string_view word, int64_t count) {
  if (counts_.size() * 2 >= slots_.size()) grow();
  const uint64_t hash = hash_of(word);
  Slot& slot = slot_of(word, hash);
  if (slot.index == kNone) {
    CHECK(counts_.size() < kNone, "too many distinct words");
    slot = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(counts_.size())};
    counts_.push_back(0);
    text_ += word;
    begin_.push_back(text_.size());
  }
  counts_[slot.index] += count;
}

void WordCounts::add(const WordCounts& other) {
  for (size_t i = 0; i < other.size(); i++) add(other.word(i), other.count(i));
}

WordCounts::Slot& WordCounts::slot_of(std::string_view word, uint64_t hash) {
  const size_t mask = slots_.size() - 1;
  const auto tag = static_cast<uint32_t>(hash >> 32);
  for (size_t place = hash & mask;; place = (place + 1) & mask) {
    Slot& slot = slots_[place];
    if (slot.index == kNone || (slot.tag == tag && this->word(slot.index) == word)) return slot;
  }
}

void WordCounts::grow() {
  slots_.assign(std::bit_ceil(std::max<size_t>(1024, size() * 4 + 1)), Slot{});
  for (size_t i = 0; i < size(); i++) {
    const uint64_t hash = hash_of(word(i));
    slot_of(word(i), hash) = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(i)};
  }
}

}  // namespace lockstep
