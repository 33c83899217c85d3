#include "data/tokenizer.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <unordered_map>

#include "core/check.h"
#include "data/bpe.h"
#include "data/bpe_alphabet.h"
#include "data/bpe_pair_table.h"
#include "data/pretokenizer.h"
#include "data/tokenizer_added_tokens.h"
#include "data/tokenizer_parts.h"
#include "data/word_cache.h"
#include "data/word_table.h"

namespace lockstep {
namespace {

constexpr std::string_view kEndOfTextNames[] = {
    "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|end▁of▁sentence|>"};

uint64_t next_number() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

class Tokenizer::Implementation {
 public:
  Implementation(TokenizerParts parts, const std::array<int32_t, 256>& byte_ids,
                 const std::vector<BpeMerger::Merge>& merges)
      : parts_(std::move(parts)),
        pretokenizer_(parts_.steps),
        added_tokens_(parts_.added_tokens),
        merger_(byte_ids, merges),
        whole_words_(find_whole_words(), Hash{}) {
    index_tokens();
  }

  const TokenizerParts& parts() const { return parts_; }
  int64_t vocab_size() const { return static_cast<int64_t>(token_begin_.size()) - 1; }
  std::optional<int32_t> end_of_text() const { return end_of_text_; }
  bool is_special(int32_t id) const { return is_special_[static_cast<size_t>(id)]; }

  std::string_view token_bytes(int32_t id) const {
    const size_t begin = token_begin_[static_cast<size_t>(id)];
    return std::string_view(token_bytes_).substr(begin, token_begin_[size_t(id) + 1] - begin);
  }

  void encode(std::string_view text, bool with_special, std::vector<int32_t>& ids) const {
    if (!with_special && added_tokens_.only_special()) {
      encode_plain(text, ids);
      return;
    }
    for (const AddedTokenFinder::Part& part : added_tokens_.split(text, with_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_plain(part.text, ids);
      }
    }
  }

 private:
  void index_tokens() {
    int32_t count = static_cast<int32_t>(parts_.printed.size());
    if (!parts_.added_tokens.empty()) {
      count = std::max(count, parts_.added_tokens.back().id + 1);
    }
    std::vector<const AddedToken*> added(static_cast<size_t>(count), nullptr);
    for (const AddedToken& token : parts_.added_tokens) added[size_t(token.id)] = &token;
    is_special_.resize(static_cast<size_t>(count));
    for (size_t id = 0; id < added.size(); id++) {
      token_begin_.push_back(token_bytes_.size());
      if (added[id] != nullptr) {
        token_bytes_ += added[id]->content;
        is_special_[id] = added[id]->special;
      } else if (id < parts_.printed.size()) {
        token_bytes_ += parse_printed(parts_.printed[id]).value_or(parts_.printed[id]);
      }
    }
    token_begin_.push_back(token_bytes_.size());
    for (const std::string_view name : kEndOfTextNames) {
      for (const AddedToken& token : parts_.added_tokens) {
        if (!end_of_text_ && token.content == name) end_of_text_ = token.id;
      }
    }
  }

  // The tokens that words of their bytes become: with ignore_merges all, else those that the merges
  // lead to.
  std::vector<WordTable::Word> find_whole_words() const {
    std::vector<WordTable::Word> words;
    std::vector<int32_t> merged;
    for (size_t i = 0; i < parts_.printed.size(); i++) {
      auto bytes = parse_printed(parts_.printed[i]);
      if (!bytes || bytes->empty()) continue;
      const auto id = static_cast<int32_t>(i);
      merged.clear();
      if (!parts_.ignore_merges) merger_.encode(*bytes, merged);
      if (parts_.ignore_merges || merged == std::vector{id}) {
        words.emplace_back(std::move(*bytes), id);
      }
    }
    return words;
  }

  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
    if (merger_.empty() && !parts_.ignore_merges && !pretokenizer_.drops_text()) {
      merger_.encode(text, ids);  // bytes: where it is split makes no difference
      return;
    }
    WordCache& cache = WordCache::of_this_thread(number_);
    const char* text_end = text.data() + text.size();
    pretokenizer_.split_batches(text, [&](std::span<const std::string_view> words) {
      encode_words(words, text_end, cache, ids);
    });
  }

  // At most PreTokenizer::kMaxBatch words. Where each is in the cache is found before the first is
  // looked up there, so that memory is read at the same time for many.
  void encode_words(std::span<const std::string_view> words, const char* text_end, WordCache& cache,
                    std::vector<int32_t>& ids) const {
    struct Place {
      WordCache::Key key;
      size_t place;
    };
    std::array<Place, PreTokenizer::kMaxBatch> places;
    for (size_t i = 0; i < words.size(); i++) {
      if (words[i].size() > WordCache::kMaxWord) continue;
      const WordCache::Key key = WordCache::key_of(words[i], text_end);
      places[i] = {key, cache.place_of(key)};
      cache.prefetch(places[i].place);
    }
    std::array<int32_t, PreTokenizer::kMaxBatch * WordCache::kMaxIds> found;
    size_t found_count = 0;
    const auto add_found = [&] {
      ids.insert(ids.end(), found.begin(), found.begin() + found_count);
      found_count = 0;
    };
    for (size_t i = 0; i < words.size(); i++) {
      if (words[i].size() > WordCache::kMaxWord) {
        add_found();
        encode_long_word(words[i], cache, ids);
        continue;
      }
      const auto [key, place] = places[i];
      if (const WordCache::Entry* entry = cache.find(key, place)) {
        std::copy_n(entry->ids, WordCache::kMaxIds, found.begin() + found_count);
        found_count += entry->count();
        continue;
      }
      add_found();
      const size_t before = ids.size();
      encode_word(words[i], ids);
      const size_t count = ids.size() - before;
      if (count <= WordCache::kMaxIds) cache.store(key, place, ids.data() + before, count);
    }
    add_found();
  }

  void encode_long_word(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const {
    if (word.size() > WordCache::kMaxLongWord) {
      encode_word(word, ids);
      return;
    }
    WordCache::LongEntry& entry = cache.long_entry(Hash{}(word));
    if (entry.holds(word)) {
      ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
      return;
    }
    const size_t before = ids.size();
    encode_word(word, ids);
    const size_t count = ids.size() - before;
    if (count <= WordCache::kMaxLongIds) entry.store(word, ids.data() + before, count);
  }

  void encode_word(std::string_view word, std::vector<int32_t>& ids) const {
    if (const int32_t* id = whole_words_.find(word, Hash{}(word))) {
      ids.push_back(*id);
      return;
    }
    merger_.encode(word, ids);
  }

  struct Hash {
    size_t operator()(std::string_view text) const { return XXH3_64bits(text.data(), text.size()); }
  };

  TokenizerParts parts_;
  PreTokenizer pretokenizer_;
  AddedTokenFinder added_tokens_;
  BpeMerger merger_;
  WordTable whole_words_;
  std::string token_bytes_;          // of all tokens, one after the other
  std::vector<size_t> token_begin_;  // one more than there are ids
  std::vector<bool> is_special_;
  std::optional<int32_t> end_of_text_;
  const uint64_t number_ = next_number();  // tells this tokenizer's words in a thread's cache
};

namespace {

using IdOf = std::unordered_map<std::string_view, int32_t>;

std::array<int32_t, 256> find_byte_ids(const IdOf& ids, std::string_view source) {
  std::array<int32_t, 256> byte_ids{};
  for (int byte = 0; byte < 256; byte++) {
    const char text = static_cast<char>(byte);
    const auto found = ids.find(print_bytes({&text, 1}));
    if (found == ids.end()) {
      throw DataError(
          "{}: the vocabulary has no token for byte {:#04x}: only byte-level BPE is supported",
          source, byte);
    }
    byte_ids[static_cast<size_t>(byte)] = found->second;
  }
  return byte_ids;
}

// Of a pair that is listed twice the last counts.
void drop_repeated_merges(std::vector<std::pair<int32_t, int32_t>>& merges) {
  PairTable<size_t> last(merges.size());
  using Table = PairTable<size_t>;
  for (size_t i = 0; i < merges.size(); i++) {
    last[Table::pair_of(merges[i].first, merges[i].second)] = i;
  }
  size_t kept = 0;
  for (size_t i = 0; i < merges.size(); i++) {
    const auto merge = merges[i];
    if (last[Table::pair_of(merge.first, merge.second)] == i) merges[kept++] = merge;
  }
  merges.resize(kept);
}

std::vector<BpeMerger::Merge> find_merge_results(const TokenizerParts& parts, const IdOf& ids,
                                                 std::string_view source) {
  std::vector<BpeMerger::Merge> merges;
  merges.reserve(parts.merges.size());
  for (const auto& [left, right] : parts.merges) {
    const std::string joined = parts.printed[size_t(left)] + parts.printed[size_t(right)];
    const auto found = ids.find(joined);
    if (found == ids.end()) {
      throw DataError("{}: model.merges: '{} {}' makes a token that is not in model.vocab", source,
                      parts.printed[size_t(left)], parts.printed[size_t(right)]);
    }
    merges.push_back({left, right, found->second});
  }
  return merges;
}

void check_added_tokens(const TokenizerParts& parts, const IdOf& ids, std::string_view source) {
  std::unordered_map<std::string_view, int32_t> seen;
  const AddedToken* previous = nullptr;
  for (const AddedToken& token : parts.added_tokens) {
    const auto id = static_cast<size_t>(token.id);
    const auto in_model = ids.find(token.content);
    const bool differs = in_model != ids.end() && in_model->second != token.id;
    const bool taken =
        (in_model == ids.end() && id < parts.printed.size() && !parts.printed[id].empty()) ||
        (previous != nullptr && previous->id == token.id);
    if (differs || taken || !seen.emplace(token.content, token.id).second) {
      throw DataError("{}: added_tokens: id {} of '{}' contradicts {}", source, token.id,
                      token.content, differs ? "model.vocab" : "that of another token");
    }
    previous = &token;
  }
  const size_t known = parts.printed.size() + parts.added_tokens.size();
  if (previous != nullptr && static_cast<size_t>(previous->id) > known + (1u << 20)) {
    throw DataError("{}: added_tokens: id {} of '{}' is far above the number of tokens", source,
                    previous->id, previous->content);
  }
}

// Hugging Face numbers added tokens by itself where model.vocab does not hold them: one after the
// other from the size of the vocabulary. Where that would give other ids, they go into the
// vocabulary.
void keep_added_ids(TokenizerParts& parts, const IdOf& ids) {
  const auto size = static_cast<int32_t>(ids.size());
  int32_t largest = -1;
  bool agrees = true;
  for (const AddedToken& token : parts.added_tokens) {
    if (!ids.contains(token.content)) {
      agrees = agrees && token.id == (largest >= size ? largest + 1 : size);
    }
    largest = std::max(largest, token.id);
  }
  if (agrees) return;
  if (static_cast<size_t>(largest) >= parts.printed.size()) {
    parts.printed.resize(static_cast<size_t>(largest) + 1);
  }
  for (const AddedToken& token : parts.added_tokens)
    parts.printed[size_t(token.id)] = token.content;
}

}  // namespace

Tokenizer TokenizerParts::build(std::string_view source) && {
  IdOf ids;
  ids.reserve(printed.size());
  for (size_t id = 0; id < printed.size(); id++) {
    if (!printed[id].empty()) ids.emplace(printed[id], static_cast<int32_t>(id));
  }
  drop_repeated_merges(merges);
  const std::array<int32_t, 256> byte_ids = find_byte_ids(ids, source);
  const std::vector<BpeMerger::Merge> results = find_merge_results(*this, ids, source);
  check_added_tokens(*this, ids, source);
  keep_added_ids(*this, ids);
  return Tokenizer(
      std::make_shared<Tokenizer::Implementation>(std::move(*this), byte_ids, results));
}

Tokenizer::Tokenizer(std::shared_ptr<const Implementation> implementation)
    : implementation_(std::move(implementation)) {}

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view source) {
  return parse_tokenizer_json(json, source).build(source);
}

Tokenizer Tokenizer::bytes() {
  TokenizerParts parts;
  for (int byte = 0; byte < 256; byte++) {
    const char text = static_cast<char>(byte);
    parts.printed.push_back(print_bytes({&text, 1}));
  }
  parts.steps = {{.use_regex = false}};
  parts.added_tokens = {{.id = 256, .content = "<|endoftext|>"}};
  return std::move(parts).build("bytes");
}

Tokenizer Tokenizer::from_merges(const std::vector<std::string>& special_tokens,
                                 const std::vector<std::pair<int32_t, int32_t>>& merges) {
  TokenizerParts parts;
  std::unordered_map<std::string, int32_t> ids;
  const auto add = [&](std::string printed) {
    const auto id = static_cast<int32_t>(parts.printed.size());
    if (ids.emplace(printed, id).second) parts.printed.push_back(std::move(printed));
  };
  for (const std::string& token : special_tokens) {
    add(token);
    parts.added_tokens.push_back({.id = ids.at(token), .content = token});
  }
  for (const uint8_t byte : bytes_in_printed_order()) {
    const char text = static_cast<char>(byte);
    add(print_bytes({&text, 1}));
  }
  for (const auto& [left, right] : merges) {
    const auto known = static_cast<int32_t>(parts.printed.size());
    CHECK(left >= 0 && left < known && right >= 0 && right < known, "merge of ids {} and {}", left,
          right);
    add(parts.printed[size_t(left)] + parts.printed[size_t(right)]);
  }
  parts.merges = merges;
  parts.steps = {PreTokenizer::Step{}};
  return std::move(parts).build("trained tokenizer");
}

std::string Tokenizer::to_json() const { return write_tokenizer_json(implementation_->parts()); }

void Tokenizer::encode(std::string_view text, std::vector<int32_t>& ids) const {
  implementation_->encode(text, false, ids);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 2);  // few texts have more, and what is not written takes no memory
  encode(text, ids);
  return ids;
}

std::vector<int32_t> Tokenizer::encode_with_special_tokens(std::string_view text) const {
  std::vector<int32_t> ids;
  implementation_->encode(text, true, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) {
      throw DataError("token id {} is outside the tokenizer's vocabulary of {}", id, vocab_size());
    }
    text += implementation_->token_bytes(id);
  }
  return text;
}

int64_t Tokenizer::vocab_size() const { return implementation_->vocab_size(); }

std::optional<int32_t> Tokenizer::end_of_text() const { return implementation_->end_of_text(); }

bool Tokenizer::is_special(int32_t id) const {
  CHECK(id >= 0 && id < vocab_size(), "id {} of {}", id, vocab_size());
  return implementation_->is_special(id);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  CHECK(id >= 0 && id < vocab_size(), "id {} of {}", id, vocab_size());
  return implementation_->token_bytes(id);
}

uint64_t Tokenizer::fingerprint() const {
  TokenizerParts parts = implementation_->parts();
  parts.post_processor = "null";
  const std::string json = write_tokenizer_json(parts);
  return XXH3_64bits(json.data(), json.size());
}

}  // namespace lockstep
