#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lockstep {

// Text to token ids and back: byte-level BPE (Sennrich et al., 2016; Radford et al., 2019), id for
// id as Hugging Face `tokenizers` and tiktoken do it, or plain bytes. Immutable and cheap to copy;
// every const function may be called from any thread.
//
// decode(encode(x)) == x for every byte string x (unless the tokenizer's file asks for text to be
// dropped, by a `Split` that removes). Bytes that are not UTF-8 are neither letters nor anything
// else to a pattern: each run of them is a piece of its own, and the text before and after it is
// split as if it stood alone.
class Tokenizer {
 public:
  // A tokenizer.json of Hugging Face; a tiktoken rank file ("<base64> <rank>" lines); or a folder
  // that holds tokenizer.json, vocab.json with merges.txt, or one rank file. A rank file does not
  // say how text is split: r50k, p50k, cl100k, o200k and Llama 3 are recognised by the file's name
  // (which begins so) or by the number of ranks. Throws DataError, naming file and field.
  static Tokenizer load(const std::filesystem::path& path);
  // The content of a tokenizer.json: how datasets and checkpoints carry a tokenizer. `source` names
  // it in errors.
  static Tokenizer from_json(std::string_view json, std::string_view source = "tokenizer.json");
  // One id a byte, and <|endoftext|> after them: 257 ids.
  static Tokenizer bytes();
  // What a trainer made, numbered as Hugging Face's BpeTrainer does: special tokens, the 256 bytes
  // by code point of their printed form, then one token a merge (none for a merge whose bytes are a
  // token already). Text is split by GPT-2's pattern.
  static Tokenizer from_merges(const std::vector<std::string>& special_tokens,
                               const std::vector<std::pair<int32_t, int32_t>>& merges);

  // As Hugging Face's tokenizer.json; from_json(to_json()) is the same tokenizer, and writes the
  // same bytes.
  std::string to_json() const;

  // Special tokens in the text are plain text here.
  std::vector<int32_t> encode(std::string_view text) const;
  // As above, added to the end of `ids`.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;
  // Special tokens are recognised.
  std::vector<int32_t> encode_with_special_tokens(std::string_view text) const;
  // The bytes of the tokens, special ones included. An id below vocab_size that no token has writes
  // nothing; throws DataError for one that is not in [0, vocab_size).
  std::string decode(std::span<const int32_t> ids) const;

  int64_t vocab_size() const;  // ids are below it
  // The token that ends a document, where there is one: <|endoftext|>, <|end_of_text|>, </s>, ...
  std::optional<int32_t> end_of_text() const;
  bool is_special(int32_t id) const;
  // What decode writes for it; lives as long as a copy of this tokenizer.
  std::string_view token_bytes(int32_t id) const;
  // XXH3 of all that decides ids: equal for two tokenizers that give the same ids.
  uint64_t fingerprint() const;

 private:
  friend struct TokenizerParts;
  class Implementation;
  explicit Tokenizer(std::shared_ptr<const Implementation> implementation);
  std::shared_ptr<const Implementation> implementation_;
};

}  // namespace lockstep
