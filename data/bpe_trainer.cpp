#include "data/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <deque>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "data/bpe_alphabet.h"
#include "data/bpe_pair_table.h"

namespace lockstep {
namespace {

constexpr std::string_view kEndOfText = "<|endoftext|>";

// Indices of words, ascending, as differences of seven bits a byte. Frequent pairs have the long
// lists, and the small differences; rare pairs are millions, and their lists fit into a std::string
// without memory of their own.
class WordList {
 public:
  // Not less than the last.
  void add(uint32_t word) {
    uint32_t step = word - last_;
    if (step == 0) return;  // there already
    last_ = word;
    for (; step > 0x7F; step >>= 7) bytes_ += static_cast<char>(step | 0x80);
    bytes_ += static_cast<char>(step);
  }
  std::string take_bytes() { return std::move(bytes_); }

  template <class Use>
  static void for_each(std::string_view bytes, const Use& use) {
    uint32_t word = kBeforeFirst, step = 0;
    int shift = 0;
    for (const char byte : bytes) {
      step |= (static_cast<uint32_t>(byte) & 0x7F) << shift;
      shift += 7;
      if ((byte & 0x80) != 0) continue;
      use(word += step);
      step = 0;
      shift = 0;
    }
  }

 private:
  static constexpr uint32_t kBeforeFirst = UINT32_MAX;  // one step before word 0
  std::string bytes_;
  uint32_t last_ = kBeforeFirst;
};

// One training run. The words are sequences of tokens that shrink as pairs are merged; each pair
// has a count, and a queue holds candidates with the words that they may occur in. Counts of queued
// pairs only go stale downwards, so a candidate is checked against the count when it comes up. All
// of this follows Hugging Face's BpeTrainer step by step, because its order decides ties. Token is
// the smallest type that holds every id: one a byte of every distinct word is most of the memory.
template <class Token>
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
    std::string words;                              // a WordList's bytes
    bool operator<(const Candidate& other) const {  // heaps take the largest first
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  struct Growing {
    uint64_t pair;
    WordList words;
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
  std::vector<Token> tokens_;     // of all words, each where the word begins in their text
  std::vector<uint32_t> length_;  // tokens of each word
  PairTable<PairState> pairs_;
  std::deque<Candidate> queue_;   // a heap; a deque grows without a copy
  std::vector<Growing> pending_;  // pairs that grew in this merge
  std::vector<std::string> printed_;
  std::unordered_map<std::string, int32_t> id_of_;
};

template <class Token>
Training<Token>::Training(const WordCounts& words) : words_(words) {
  const auto add = [&](std::string printed) {
    id_of_.emplace(printed, static_cast<int32_t>(printed_.size()));
    printed_.push_back(std::move(printed));
  };
  add(std::string(kEndOfText));
  std::array<Token, 256> byte_ids{};
  for (const uint8_t byte : bytes_in_printed_order()) {
    byte_ids[byte] = static_cast<Token>(printed_.size());
    const char text = static_cast<char>(byte);
    add(print_bytes({&text, 1}));
  }
  tokens_.reserve(words.text().size());
  for (const char byte : words.text()) tokens_.push_back(byte_ids[static_cast<uint8_t>(byte)]);
  length_.reserve(words.size());
  for (size_t i = 0; i < words.size(); i++) {
    length_.push_back(static_cast<uint32_t>(words.word(i).size()));
  }
  count_pairs();
}

template <class Token>
void Training<Token>::count_pairs() {
  for (WordIndex word = 0; word < words_.size(); word++) {
    const Token* tokens = tokens_.data() + words_.begin(word);
    for (uint32_t i = 0; i + 1 < length_[word]; i++) change(tokens[i], tokens[i + 1], 1, word);
  }
  queue_pending();
}

template <class Token>
void Training<Token>::push(Candidate candidate) {
  queue_.push_back(std::move(candidate));
  std::push_heap(queue_.begin(), queue_.end());
}

template <class Token>
typename Training<Token>::Candidate Training<Token>::pop() {
  std::pop_heap(queue_.begin(), queue_.end());
  Candidate top = std::move(queue_.back());
  queue_.pop_back();
  return top;
}

// The token that the pair's bytes are; a new one unless they are one already.
template <class Token>
int32_t Training<Token>::token_of_merge(int32_t left, int32_t right) {
  std::string printed = printed_[size_t(left)] + printed_[size_t(right)];
  const auto next = static_cast<int32_t>(printed_.size());
  const auto [found, is_new] = id_of_.emplace(printed, next);
  if (is_new) printed_.push_back(std::move(printed));
  return found->second;
}

// Adds to a pair's count; where it grows, notes the word.
template <class Token>
void Training<Token>::change(int32_t left, int32_t right, int64_t by, WordIndex word) {
  const uint64_t pair = PairTable<PairState>::pair_of(left, right);
  PairState& state = pairs_[pair];
  state.count += by * words_.count(word);
  if (by < 0) return;
  if (state.pending < 0) {
    state.pending = static_cast<int32_t>(pending_.size());
    pending_.push_back({pair, {}});
  }
  pending_[size_t(state.pending)].words.add(word);
}

template <class Token>
void Training<Token>::queue_pending() {
  for (Growing& growing : pending_) {
    PairState& state = pairs_[growing.pair];
    state.pending = -1;
    if (state.count > 0) push({growing.pair, state.count, growing.words.take_bytes()});
  }
  pending_.clear();
}

template <class Token>
void Training<Token>::merge_in_word(WordIndex word, int32_t left, int32_t right, int32_t merged) {
  Token* tokens = tokens_.data() + words_.begin(word);
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
    tokens[out] = static_cast<Token>(merged);
    if (in < length) {
      change(right, tokens[in], -1, word);
      change(merged, tokens[in], 1, word);
    }
  }
  length = out;
}

template <class Token>
std::vector<std::pair<int32_t, int32_t>> Training<Token>::run(int64_t vocab_size) {
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
    WordList::for_each(top.words,
                       [&](WordIndex word) { merge_in_word(word, left, right, merged); });
    queue_pending();
  }
  return merges;
}

}  // namespace

BpeTrainer::BpeTrainer() : pretokenizer_({PreTokenizer::Step{}}) {}

void BpeTrainer::count_words(std::string_view text, WordCounts& counts) const {
  pretokenizer_.split(text, [&](std::string_view word) { counts.add(word); });
}

Tokenizer BpeTrainer::train(int64_t vocab_size) {
  if (vocab_size < 257) {
    throw UsageError("a vocabulary of {} is too small: 256 bytes and <|endoftext|> take 257 tokens",
                     vocab_size);
  }
  words_.drop_index();
  const bool is_small = vocab_size <= 1 << 16;
  return Tokenizer::from_merges({std::string(kEndOfText)},
                                is_small ? Training<uint16_t>(words_).run(vocab_size)
                                         : Training<int32_t>(words_).run(vocab_size));
}

}  // namespace lockstep
