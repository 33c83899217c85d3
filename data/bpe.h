#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/bpe_pair_table.h"

namespace lockstep {

// Applies merges to words. A word starts as its bytes' tokens; then, again and again, the adjacent
// pair whose merge has the lowest rank (the leftmost of them) becomes one token (Sennrich et al.,
// 2016).
class BpeMerger {
 public:
  struct Merge {
    int32_t left, right, result;
  };
  // merges[r] has rank r; at most 2^31 - 1 of them, no pair twice.
  BpeMerger(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  bool empty() const { return table_.size() == 0; }
  int32_t byte_id(uint8_t byte) const { return byte_ids_[byte]; }

  // Adds the ids of `word`, of less than 4 GiB, to the end of `ids`. Words longer than kShortWord
  // bytes take O(n log n) steps and 24 bytes of memory a byte.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  static constexpr size_t kShortWord = 96;

 private:
  static constexpr int32_t kNoRank = INT32_MAX;
  struct Found {
    int32_t rank = kNoRank, result = 0;
  };

  Found find(int32_t left, int32_t right) const;
  void encode_short(std::string_view word, std::vector<int32_t>& ids) const;
  void encode_long(std::string_view word, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> byte_ids_;
  PairTable<Found> table_;
};

}  // namespace lockstep
