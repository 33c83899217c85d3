#include "data/bpe.h"

#include <algorithm>
#include <bit>

#include "core/check.h"

namespace lockstep {

namespace {

int32_t last_id(const std::array<int32_t, 256>& byte_ids,
                const std::vector<BpeMerger::Merge>& merges) {
  int32_t last = *std::max_element(byte_ids.begin(), byte_ids.end());
  for (const auto& [left, right, result] : merges) last = std::max({last, left, right, result});
  return last;
}

}  // namespace

BpeMerger::RankTable::RankTable(const std::vector<Merge>& merges, int32_t last_id) {
  // Of an id not all bits are ones, as they are of -1.
  id_bits_ = static_cast<int>(std::bit_width(static_cast<uint32_t>(last_id) + 1));
  hash_mask_ = (uint64_t{1} << 2 * id_bits_) - 1;
  int bucket_bits = std::max(0, 2 * id_bits_ - 32);
  while ((size_t{4} << bucket_bits) < merges.size()) bucket_bits++;  // half full at most
  bucket_shift_ = 2 * id_bits_ - bucket_bits;
  const Four no_ranks = Four{} + kNoRank;
  buckets_.assign(size_t{1} << bucket_bits, Bucket{.hashes = {}, .ranks = {no_ranks, no_ranks}});

  for (uint32_t rank = 0; rank < merges.size(); rank++) {
    const uint64_t hash = hash_of(merges[rank].left, merges[rank].right);
    Bucket& bucket = buckets_[hash >> bucket_shift_];
    size_t place = 0;
    while (place < 8 && bucket.ranks[place / 4][place % 4] != kNoRank) place++;
    if (place == 8) {
      more_[hash] = rank;
    } else {
      bucket.hashes[place / 4][place % 4] = static_cast<uint32_t>(hash);
      bucket.ranks[place / 4][place % 4] = rank;
    }
  }
}

BpeMerger::BpeMerger(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids), ranks_(merges, last_id(byte_ids, merges)), byte_ranks_(1 << 16) {
  results_.reserve(merges.size());
  for (const Merge& merge : merges) results_.push_back(merge.result);
  for (size_t pair = 0; pair < byte_ranks_.size(); pair++) {
    byte_ranks_[pair] = ranks_.find(byte_ids_[pair >> 8], byte_ids_[pair & 0xFF]);
  }
}

void BpeMerger::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (empty() || word.size() <= 1) {
    for (const char byte : word) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
  } else if (word.size() <= kShortWord) {
    encode_short(word, ids);
  } else {
    encode_long(word, ids);
  }
}

// Quadratic, and for words the fastest. Tokens stay at the places of their first bytes, and those
// that are left are bits of a number: nothing moves, and only the number of merges is not foretold.
void BpeMerger::encode_short(std::string_view word, std::vector<int32_t>& ids) const {
  // Byte i has place i + 1; what is before the first and behind the last is no token.
  static_assert(kShortWord == 62);
  constexpr size_t kPlaces = 64;
  constexpr uint64_t kNone = uint64_t{kNoRank} << 6;
  const auto smaller = [](uint64_t a, uint64_t b) { return b ^ ((a ^ b) & -uint64_t{a < b}); };
  int32_t tokens[kPlaces];
  // The rank of the merge of each with the one behind it, and its place; whole fours of them, which
  // are compared at a time.
  uint64_t candidates[kPlaces];
  const size_t count = word.size();
  tokens[0] = tokens[count + 1] = -1;
  const auto set = [&](size_t place, uint32_t rank) {
    candidates[place] = uint64_t{rank} << 6 | place;
  };
  for (size_t i = 0; i <= count; i += 4) std::fill_n(candidates + i, 4, kNone);
  tokens[1] = byte_ids_[static_cast<uint8_t>(word[0])];
  for (size_t i = 1; i < count; i++) {
    tokens[i + 1] = byte_ids_[static_cast<uint8_t>(word[i])];
    set(i, byte_ranks_[byte_pair(word[i - 1], word[i])]);
  }

  uint64_t left = ~uint64_t{0} >> (62 - count);
  for (;;) {
    uint64_t bests[4] = {kNone, kNone, kNone, kNone};
    for (size_t i = 0; i <= count; i += 4) {
      for (size_t j = 0; j < 4; j++) bests[j] = std::min(bests[j], candidates[i + j]);
    }
    const uint64_t best = smaller(smaller(bests[0], bests[1]), smaller(bests[2], bests[3]));
    if (best >= kNone) break;
    const size_t place = best % 64;
    const uint64_t behind = left & (~uint64_t{1} << place);
    const int previous = 63 - __builtin_clzll(left & ((uint64_t{1} << place) - 1));
    const int merged = __builtin_ctzll(behind), next = __builtin_ctzll(behind & (behind - 1));
    left ^= uint64_t{1} << merged;
    tokens[place] = results_[best >> 6];
    candidates[merged] = kNone;
    set(place, ranks_.find(tokens[place], tokens[next]));
    set(static_cast<size_t>(previous), ranks_.find(tokens[previous], tokens[place]));
  }
  left &= ~(uint64_t{1} << (count + 1) | 1);
  for (; left != 0; left &= left - 1) ids.push_back(tokens[__builtin_ctzll(left)]);
}

// A tournament of candidate merges (Knuth, 5.4.1) over a linked list of tokens: the best of each
// two plays on, and three places change with a merge.
void BpeMerger::encode_long(std::string_view word, std::vector<int32_t>& ids) const {
  struct Node {
    int32_t token;
    uint32_t previous, next;
  };
  CHECK(word.size() < UINT32_MAX - 1, "a word of {} bytes", word.size());
  // Byte i has place i + 1; what is before the first and behind the last is no token.
  const auto places = static_cast<uint32_t>(word.size()) + 2;
  std::vector<Node> nodes(places);
  for (uint32_t i = 0; i < places; i++) nodes[i] = {-1, i - 1, i + 1};
  for (uint32_t i = 1; i + 1 < places; i++) {
    nodes[i].token = byte_ids_[static_cast<uint8_t>(word[i - 1])];
  }

  // The rank of the merge of a token with the one behind it, and its place; winners before players.
  std::vector<uint64_t> tree(size_t{2} * places);
  const auto candidate_at = [&](uint32_t place, uint32_t rank) {
    tree[size_t{places} + place] = uint64_t{rank} << 32 | place;
  };
  const auto play = [&](size_t i) { tree[i] = std::min(tree[2 * i], tree[2 * i + 1]); };
  const auto set = [&](uint32_t place, uint32_t rank) {
    candidate_at(place, rank);
    for (size_t i = (size_t{places} + place) / 2; i > 0; i /= 2) play(i);
  };
  candidate_at(places - 1, kNoRank);
  for (uint32_t i = 0; i + 1 < places; i++) {
    candidate_at(i, ranks_.find(nodes[i].token, nodes[i + 1].token));
  }
  for (size_t i = places - 1; i > 0; i--) play(i);

  while (tree[1] >> 32 != kNoRank) {
    const auto place = static_cast<uint32_t>(tree[1]);
    Node& node = nodes[place];
    const uint32_t merged = node.next;
    node.token = results_[tree[1] >> 32];
    node.next = nodes[merged].next;
    nodes[node.next].previous = place;
    set(merged, kNoRank);
    set(place, ranks_.find(node.token, nodes[node.next].token));
    set(node.previous, ranks_.find(nodes[node.previous].token, node.token));
  }
  for (uint32_t i = nodes[0].next; i + 1 < places; i = nodes[i].next) ids.push_back(nodes[i].token);
}

}  // namespace lockstep
