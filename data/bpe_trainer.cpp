#include "data/bpe_trainer.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "data/bpe_alphabet.h"
#include "data/bpe_pair_table.h"
#include "data/pretokenizer.h"

namespace lockstep {
namespace {

constexpr std::string_view kEndOfText = "<|endoftext|>";

// Distinct words and how often each occurred: a hash table of indices into one text.
class WordCounts {
 public:
  void add(std::string_view word) {
    if (counts_.size() * 2 >= slots_.size()) grow();
    uint32_t& slot = slots_[slot_of(word)];
    if (slot == kNone) {
      CHECK(counts_.size() < kNone, "too many distinct words");
      slot = static_cast<uint32_t>(counts_.size());
      counts_.push_back(0);
      text_ += word;
      begin_.push_back(text_.size());
    }
    counts_[slot]++;
  }

  size_t size() const { return counts_.size(); }
  int64_t count(size_t i) const { return counts_[i]; }
  std::string_view word(size_t i) const {
    return std::string_view(text_).substr(begin_[i], begin_[i + 1] - begin_[i]);
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  size_t slot_of(std::string_view word) const {
    const size_t mask = slots_.size() - 1;
    for (size_t slot = XXH3_64bits(word.data(), word.size()) & mask;; slot = (slot + 1) & mask) {
      if (slots_[slot] == kNone || this->word(slots_[slot]) == word) return slot;
    }
  }

  void grow() {
    slots_.assign(std::max<size_t>(1024, slots_.size() * 2), kNone);
    for (size_t i = 0; i < size(); i++) slots_[slot_of(word(i))] = static_cast<uint32_t>(i);
  }

  std::string text_;
  std::vector<size_t> begin_{0};  // one more than there are words
  std::vector<int64_t> counts_;
  std::vector<uint32_t> slots_;
};

// One training run. The words are sequences of tokens that shrink as pairs are merged; each pair
// has a count, and a queue holds candidates with the words that they may occur in. Counts of queued
// pairs only go stale downwards, so a candidate is checked against the count when it comes up. All
// of this follows Hugging Face's BpeTrainer step by step, because its order decides ties.
class Training {
 public:
  explicit Training(const WordCounts& words);
  // Merges until there are `vocab_size` tokens or no pairs.
  std::vector<std::pair<int32_t, int32_t>> run(int64_t vocab_size);

 private:
  using WordIndex = uint32_t;
  struct Candidate {
    uint64_t pair;
    int64_t count;
    std::vector<WordIndex> words;
    bool operator<(const Candidate& other) const {  // heaps take the largest first
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  struct PairState {
    int64_t count = 0;
    int32_t pending = -1;  // its place in pending_
  };

  void count_pairs();
  void push(Candidate candidate);
  Candidate pop();
  int32_t token_of_merge(int32_t left, int32_t right);
  void merge_in_word(WordIndex word, int32_t left, int32_t right, int32_t merged);
  void change(int32_t left, int32_t right, int64_t by, WordIndex word);
  void queue_pending();

  const WordCounts& words_;
  std::vector<int32_t> tokens_;  // of all words, each at its begin_
  std::vector<size_t> begin_;
  std::vector<uint32_t> length_;  // tokens of each word
  PairTable<PairState> pairs_;
  std::vector<Candidate> queue_;    // a heap
  std::vector<Candidate> pending_;  // pairs that grew in this merge
  std::vector<std::string> printed_;
  std::unordered_map<std::string, int32_t> id_of_;
};

Training::Training(const WordCounts& words) : words_(words) {
  const auto add = [&](std::string printed) {
    id_of_.emplace(printed, static_cast<int32_t>(printed_.size()));
    printed_.push_back(std::move(printed));
  };
  add(std::string(kEndOfText));
  std::array<int32_t, 256> byte_ids{};
  for (const uint8_t byte : bytes_in_printed_order()) {
    byte_ids[byte] = static_cast<int32_t>(printed_.size());
    const char text = static_cast<char>(byte);
    add(print_bytes({&text, 1}));
  }
  begin_.reserve(words.size());
  length_.reserve(words.size());
  for (size_t i = 0; i < words.size(); i++) {
    begin_.push_back(tokens_.size());
    length_.push_back(static_cast<uint32_t>(words.word(i).size()));
    for (const char byte : words.word(i)) tokens_.push_back(byte_ids[static_cast<uint8_t>(byte)]);
  }
  count_pairs();
}

void Training::count_pairs() {
  for (WordIndex word = 0; word < words_.size(); word++) {
    const int32_t* tokens = tokens_.data() + begin_[word];
    for (uint32_t i = 0; i + 1 < length_[word]; i++) change(tokens[i], tokens[i + 1], 1, word);
  }
  queue_pending();
}

void Training::push(Candidate candidate) {
  queue_.push_back(std::move(candidate));
  std::push_heap(queue_.begin(), queue_.end());
}

Training::Candidate Training::pop() {
  std::pop_heap(queue_.begin(), queue_.end());
  Candidate top = std::move(queue_.back());
  queue_.pop_back();
  return top;
}

// The token that the pair's bytes are; a new one unless they are one already.
int32_t Training::token_of_merge(int32_t left, int32_t right) {
  std::string printed = printed_[size_t(left)] + printed_[size_t(right)];
  const auto next = static_cast<int32_t>(printed_.size());
  const auto [found, is_new] = id_of_.emplace(printed, next);
  if (is_new) printed_.push_back(std::move(printed));
  return found->second;
}

// Adds to a pair's count; where it grows, notes the word.
void Training::change(int32_t left, int32_t right, int64_t by, WordIndex word) {
  const uint64_t pair = PairTable<PairState>::pair_of(left, right);
  PairState& state = pairs_[pair];
  state.count += by * words_.count(word);
  if (by < 0) return;
  if (state.pending < 0) {
    state.pending = static_cast<int32_t>(pending_.size());
    pending_.push_back({pair, 0, {}});
  }
  std::vector<WordIndex>& noted = pending_[size_t(state.pending)].words;
  if (noted.empty() || noted.back() != word) noted.push_back(word);
}

void Training::queue_pending() {
  for (Candidate& candidate : pending_) {
    PairState& state = pairs_[candidate.pair];
    state.pending = -1;
    candidate.count = state.count;
    if (state.count > 0) push(std::move(candidate));
  }
  pending_.clear();
}

void Training::merge_in_word(WordIndex word, int32_t left, int32_t right, int32_t merged) {
  int32_t* tokens = tokens_.data() + begin_[word];
  uint32_t& length = length_[word];
  uint32_t out = 0;
  for (uint32_t in = 0; in < length; out++) {
    const bool found = tokens[in] == left && in + 1 < length && tokens[in + 1] == right;
    if (!found) {
      tokens[out] = tokens[in++];
      continue;
    }
    if (out > 0) {
      change(tokens[out - 1], left, -1, word);
      change(tokens[out - 1], merged, 1, word);
    }
    in += 2;
    tokens[out] = merged;
    if (in < length) {
      change(right, tokens[in], -1, word);
      change(merged, tokens[in], 1, word);
    }
  }
  length = out;
}

std::vector<std::pair<int32_t, int32_t>> Training::run(int64_t vocab_size) {
  std::vector<std::pair<int32_t, int32_t>> merges;
  while (static_cast<int64_t>(printed_.size()) < vocab_size && !queue_.empty()) {
    Candidate top = pop();
    const int64_t count = pairs_[top.pair].count;
    if (top.count != count) {
      top.count = count;
      push(std::move(top));
      continue;
    }
    if (count < 1) break;
    const auto left = static_cast<int32_t>(top.pair >> 32);
    const auto right = static_cast<int32_t>(top.pair & UINT32_MAX);
    const int32_t merged = token_of_merge(left, right);
    merges.emplace_back(left, right);
    for (const WordIndex word : top.words) merge_in_word(word, left, right, merged);
    queue_pending();
  }
  return merges;
}

}  // namespace

struct BpeTrainer::Words {
  PreTokenizer pretokenizer{{PreTokenizer::Step{}}};
  WordCounts counts;
};

BpeTrainer::BpeTrainer() : words_(std::make_unique<Words>()) {}
BpeTrainer::~BpeTrainer() = default;
BpeTrainer::BpeTrainer(BpeTrainer&&) noexcept = default;
BpeTrainer& BpeTrainer::operator=(BpeTrainer&&) noexcept = default;

void BpeTrainer::add_text(std::string_view text) {
  words_->pretokenizer.split(text, [&](std::string_view word) { words_->counts.add(word); });
}

Tokenizer BpeTrainer::train(int64_t vocab_size) const {
  if (vocab_size < 257) {
    throw UsageError("a vocabulary of {} is too small: 256 bytes and <|endoftext|> take 257 tokens",
                     vocab_size);
  }
  return Tokenizer::from_merges({std::string(kEndOfText)},
                                Training(words_->counts).run(vocab_size));
}

}  // namespace lockstep
