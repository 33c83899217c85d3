#include "data/bpe.h"

#include <queue>

#include "core/check.h"

namespace lockstep {

BpeMerger::BpeMerger(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids), table_(merges.size()) {
  for (size_t rank = 0; rank < merges.size(); rank++) {
    table_[PairTable<Found>::pair_of(merges[rank].left, merges[rank].right)] = {
        static_cast<int32_t>(rank), merges[rank].result};
  }
}

BpeMerger::Found BpeMerger::find(int32_t left, int32_t right) const {
  const Found* found = table_.find(PairTable<Found>::pair_of(left, right));
  return found == nullptr ? Found{} : *found;
}

void BpeMerger::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (empty() || word.size() == 1) {
    for (const char byte : word) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
  } else if (word.size() <= kShortWord) {
    encode_short(word, ids);
  } else {
    encode_long(word, ids);
  }
}

// Quadratic, and for words the fastest: no queue, everything in one cache line or two.
void BpeMerger::encode_short(std::string_view word, std::vector<int32_t>& ids) const {
  int32_t tokens[kShortWord];
  Found merges[kShortWord];  // merges[i]: of tokens i and i + 1
  size_t count = word.size();
  if (count == 0) return;
  for (size_t i = 0; i < count; i++) tokens[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i + 1 < count; i++) merges[i] = find(tokens[i], tokens[i + 1]);

  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; i++) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    tokens[best] = merges[best].result;
    count--;
    for (size_t i = best + 1; i < count; i++) tokens[i] = tokens[i + 1];
    for (size_t i = best + 1; i + 1 < count; i++) merges[i] = merges[i + 1];
    if (best > 0) merges[best - 1] = find(tokens[best - 1], tokens[best]);
    if (best + 1 < count) merges[best] = find(tokens[best], tokens[best + 1]);
  }
  ids.insert(ids.end(), tokens, tokens + count);
}

// A queue of candidate merges over a linked list of tokens. A candidate whose tokens have changed
// since it was queued is recognised by its result: what starts at a place only grows.
void BpeMerger::encode_long(std::string_view word, std::vector<int32_t>& ids) const {
  struct Node {
    int32_t token;  // -1: merged into the one before
    uint32_t previous, next;
  };
  struct Candidate {
    int32_t rank, result;
    uint32_t place;
    bool operator<(const Candidate& other) const {  // std::priority_queue takes the largest first
      return rank != other.rank ? rank > other.rank : place > other.place;
    }
  };
  constexpr uint32_t kNone = UINT32_MAX;
  CHECK(word.size() < kNone, "a word of {} bytes", word.size());
  const auto size = static_cast<uint32_t>(word.size());
  std::vector<Node> nodes(size);
  for (uint32_t i = 0; i < size; i++) {
    const int32_t token = byte_ids_[static_cast<uint8_t>(word[i])];
    nodes[i] = {token, i == 0 ? kNone : i - 1, i + 1 == size ? kNone : i + 1};
  }

  std::vector<Candidate> initial;
  const auto candidate_at = [&](uint32_t place, auto add) {
    const Found found = find(nodes[place].token, nodes[nodes[place].next].token);
    if (found.rank != kNoRank) add(Candidate{found.rank, found.result, place});
  };
  for (uint32_t i = 0; i + 1 < size; i++) {
    candidate_at(i, [&](const Candidate& candidate) { initial.push_back(candidate); });
  }
  std::priority_queue<Candidate> queue({}, std::move(initial));
  const auto push = [&](const Candidate& candidate) { queue.push(candidate); };

  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Node& left = nodes[top.place];
    if (left.token < 0 || left.next == kNone) continue;
    Node& right = nodes[left.next];
    const Found found = find(left.token, right.token);
    if (found.rank == kNoRank || found.result != top.result) continue;

    left.token = top.result;
    right.token = -1;
    left.next = right.next;
    if (left.next != kNone) nodes[left.next].previous = top.place;
    if (left.previous != kNone) candidate_at(left.previous, push);
    if (left.next != kNone) candidate_at(top.place, push);
  }
  for (uint32_t i = 0; i != kNone; i = nodes[i].next) ids.push_back(nodes[i].token);
}

}  // namespace lockstep
