#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace lockstep {

// Ids of words met before, of a thread, in 3 MiB: most words of a text are few words. Short words,
// which English has, are found by two comparisons. Two of them share a place, 64 bytes, and a third
// takes that of the one that was met longer ago; of long words each has a place of its own.
class WordCache {
 public:
  static constexpr size_t kMaxWord = 15, kMaxIds = 4;

  // A word of 1 to kMaxWord bytes and its length as two numbers, so that two comparisons tell it.
  struct Key {
    uint64_t low, high;
    bool operator==(const Key&) const = default;
  };

  // `text_end`: up to which bytes may be read, whether they are the word's or not.
  static Key key_of(std::string_view word, const char* text_end) {
    Key key{};
    if (text_end - word.data() >= 16) {
      std::memcpy(&key, word.data(), 16);
      key.low &= kMasks[word.size()].low;
      key.high &= kMasks[word.size()].high;
    } else {
      std::memcpy(&key, word.data(), word.size());
    }
    key.high |= uint64_t{word.size()} << 56;
    return key;
  }

  // The ids of one word: those that are not negative.
  struct Entry {
    Key key{};  // zeros: none
    int32_t ids[kMaxIds] = {-1, -1, -1, -1};

    size_t count() const {
      return 1 + static_cast<size_t>(ids[1] >= 0) + static_cast<size_t>(ids[2] >= 0) +
             static_cast<size_t>(ids[3] >= 0);
    }
  };

  // A word of up to kMaxLongWord bytes.
  static constexpr size_t kMaxLongWord = 46, kMaxLongIds = 20;
  struct LongEntry {
    uint8_t length = 0, count = 0;  // 0: none
    char word[kMaxLongWord];
    int32_t ids[kMaxLongIds];

    bool holds(std::string_view text) const {
      return length == text.size() && std::memcmp(word, text.data(), text.size()) == 0;
    }
    void store(std::string_view text, const int32_t* first_id, size_t id_count) {
      length = static_cast<uint8_t>(text.size());
      count = static_cast<uint8_t>(id_count);
      std::memcpy(word, text.data(), text.size());
      std::copy_n(first_id, id_count, ids);
    }
  };

  // The tables of this thread, emptied if another tokenizer used it last.
  static WordCache& of_this_thread(uint64_t tokenizer) {
    thread_local WordCache cache;
    if (cache.tokenizer_ != tokenizer) {
      cache.places_.assign(size_t{1} << kPlaceBits, Place{});
      cache.long_entries_.assign(kLongEntries, LongEntry{});
      cache.tokenizer_ = tokenizer;
    }
    return cache;
  }

  size_t place_of(const Key& key) const {
    return (key.low * 0x9E3779B97F4A7C15u + key.high * 0xC2B2AE3D27D4EB4Fu) >> (64 - kPlaceBits);
  }
  void prefetch(size_t place) const { __builtin_prefetch(&places_[place]); }
  LongEntry& long_entry(uint64_t hash) { return long_entries_[hash % kLongEntries]; }

  // The word's entry, or null.
  const Entry* find(const Key& key, size_t place) {
    Place& entries = places_[place];
    if (entries.newer.key == key) return &entries.newer;
    if (entries.older.key != key) return nullptr;
    std::swap(entries.newer, entries.older);
    return &entries.newer;
  }
  // count: 1 to kMaxIds
  void store(const Key& key, size_t place, const int32_t* ids, size_t count) {
    Place& entries = places_[place];
    entries.older = entries.newer;
    entries.newer = {.key = key};
    for (size_t i = 0; i < count; i++) entries.newer.ids[i] = ids[i];
  }

 private:
  // The bytes of a word of so many.
  static constexpr std::array<Key, kMaxWord + 1> kMasks = [] {
    std::array<Key, kMaxWord + 1> masks{};
    for (size_t size = 1; size <= kMaxWord; size++) {
      masks[size].low = ~uint64_t{0} >> (size < 8 ? 64 - 8 * size : 0);
      masks[size].high = size > 8 ? ~uint64_t{0} >> (128 - 8 * size) : 0;
    }
    return masks;
  }();

  static constexpr int kPlaceBits = 15;
  static constexpr size_t kLongEntries = 1 << 13;
  struct alignas(64) Place {
    Entry newer, older;
  };
  uint64_t tokenizer_ = 0;
  std::vector<Place> places_;
  std::vector<LongEntry> long_entries_;
};

}  // namespace lockstep
