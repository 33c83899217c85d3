#pragma once
#include <bit>
#include <cstdint>
#include <vector>

namespace lockstep {

// A hash table from pairs of token ids (not negative) to values: open addressing, linear probing,
// no removal.
template <class Value>
class PairTable {
 public:
  explicit PairTable(size_t expected = 8) { entries_.resize(std::bit_ceil(expected * 2 + 2)); }

  // The value of the pair, put there as Value{} when it was not; valid until the next insertion.
  Value& operator[](uint64_t pair) {
    if (size_ * 4 >= entries_.size() * 3) grow();
    Entry& entry = entries_[slot_of(pair)];
    if (entry.pair == kNone) {
      entry.pair = pair;
      size_++;
    }
    return entry.value;
  }

  const Value* find(uint64_t pair) const {
    const Entry& entry = entries_[slot_of(pair)];
    return entry.pair == pair ? &entry.value : nullptr;
  }

  size_t size() const { return size_; }

  static uint64_t pair_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  struct Entry {
    uint64_t pair = kNone;
    Value value{};
  };

  // Where the pair is, or would be.
  size_t slot_of(uint64_t pair) const {
    const uint64_t product = pair * 0x9E3779B97F4A7C15u;  // Fibonacci hashing
    const uint64_t mask = entries_.size() - 1;
    for (uint64_t slot = (product ^ product >> 32) & mask;; slot = (slot + 1) & mask) {
      if (entries_[slot].pair == pair || entries_[slot].pair == kNone) return slot;
    }
  }

  void grow() {
    std::vector<Entry> old(entries_.size() * 2);
    old.swap(entries_);
    for (Entry& entry : old) {
      if (entry.pair != kNone) entries_[slot_of(entry.pair)] = std::move(entry);
    }
  }

  std::vector<Entry> entries_;
  size_t size_ = 0;
};

}  // namespace lockstep
