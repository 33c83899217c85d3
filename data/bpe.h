#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

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

  bool empty() const { return results_.empty(); }
  int32_t byte_id(uint8_t byte) const { return byte_ids_[byte]; }

  // Adds the ids of `word`, of less than 4 GiB, to the end of `ids`. Words longer than kShortWord
  // bytes take O(n log n) steps and 28 bytes of memory a byte.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  static constexpr size_t kShortWord = 62;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;

  // The ranks of pairs of tokens: a hash table of buckets of one cache line. Whether a pair is
  // there can hardly be foretold, so nothing branches on it.
  class RankTable {
   public:
    explicit RankTable(size_t expected);
    void add(int32_t left, int32_t right, uint32_t rank);
    // kNoRank where there is none. Negative ids have none.
    uint32_t find(int32_t left, int32_t right) const {
      const uint64_t pair = pair_of(left, right);
      for (size_t i = bucket_of(pair);; i = (i + 1) & mask_) {
        const Bucket& bucket = buckets_[i];
        uint32_t found = kNoRank;
        for (size_t j = 0; j < kBucket; j++) {
          const uint32_t other = -uint32_t{bucket.pairs[j] != pair};  // all bits, or none
          found &= bucket.ranks[j] | other;
        }
        if (bucket.pairs[kBucket - 1] == kNoPair || found != kNoRank) return found;
      }
    }

   private:
    static constexpr uint64_t kNoPair = ~uint64_t{0};
    static constexpr size_t kBucket = 5;
    struct alignas(64) Bucket {  // filled from the front; when it is full, the next goes on
      uint64_t pairs[kBucket];
      uint32_t ranks[kBucket];
    };
    static uint64_t pair_of(int32_t left, int32_t right) {
      return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
    }
    size_t bucket_of(uint64_t pair) const {
      const uint64_t product = pair * 0x9E3779B97F4A7C15u;  // Fibonacci hashing
      return (product ^ product >> 32) & mask_;
    }

    std::vector<Bucket> buckets_;
    size_t mask_;
  };

  static size_t byte_pair(char left, char right) {
    return size_t{static_cast<uint8_t>(left)} << 8 | static_cast<uint8_t>(right);
  }
  void encode_short(std::string_view word, std::vector<int32_t>& ids) const;
  void encode_long(std::string_view word, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<int32_t> results_;  // of the merges, by rank
  RankTable ranks_;
  std::vector<uint32_t> byte_ranks_;  // of the tokens of two bytes, by byte_pair()
};

}  // namespace lockstep
