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
  // merges[r] has rank r; at most 2^31 - 1 of them, no pair twice. Ids are below 2^31 - 1.
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
  // there can hardly be foretold, so nothing branches on it. No two pairs have the same hash, of
  // which the number of the bucket is the first bits, and the bucket holds the last 32.
  class RankTable {
   public:
    // last_id: the largest that find() gets
    RankTable(const std::vector<Merge>& merges, int32_t last_id);
    // kNoRank where there is none. -1 is no token and has none.
    uint32_t find(int32_t left, int32_t right) const {
      const uint64_t hash = hash_of(left, right);
      const Bucket& bucket = buckets_[hash >> bucket_shift_];
      const Four last_bits = Four{} + static_cast<uint32_t>(hash);
      const Four ranks = (bucket.ranks[0] | Four(bucket.hashes[0] != last_bits)) &
                         (bucket.ranks[1] | Four(bucket.hashes[1] != last_bits));
      const uint32_t found = ranks[0] & ranks[1] & ranks[2] & ranks[3];
      if (bucket.ranks[1][3] == kNoRank || found != kNoRank) return found;
      const uint32_t* in_more = more_.find(hash);
      return in_more == nullptr ? kNoRank : *in_more;
    }

   private:
    using Four = uint32_t __attribute__((vector_size(16)));
    struct alignas(64) Bucket {  // filled from the front
      Four hashes[2];
      Four ranks[2];  // kNoRank: none
    };
    // The product with an odd number (Fibonacci hashing) modulo 2^(2 id_bits_), where it has an
    // inverse.
    uint64_t hash_of(int32_t left, int32_t right) const {
      const uint64_t pair =
          uint64_t{static_cast<uint32_t>(left)} << id_bits_ | static_cast<uint32_t>(right);
      return pair * 0x9E3779B97F4A7C15u & hash_mask_;
    }

    int id_bits_, bucket_shift_;
    uint64_t hash_mask_;
    std::vector<Bucket> buckets_;
    PairTable<uint32_t> more_;  // by hash: of the pairs that find their bucket full
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
