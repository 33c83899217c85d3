#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

// Text to token ids and back: byte-level BPE (Sennrich et al., 2016; Radford et al., 2019), or
// plain bytes. Immutable and cheap to copy; every const function may be called from any thread.
class Tokenizer {
 public:
  // A tokenizer.json of Hugging Face, a tiktoken rank file (*.tiktoken), or a folder that holds
  // tokenizer.json or vocab.json with merges.txt. Throws DataError, naming file and field.
  static Tokenizer load(const std::filesystem::path& path);
  // The content of a tokenizer.json: how datasets and checkpoints carry a tokenizer.
  static Tokenizer from_json(std::string_view json);
  // One id a byte, and end-of-text after them.
  static Tokenizer bytes();

  // As Hugging Face's tokenizer.json; from_json(to_json()) is the same tokenizer.
  std::string to_json() const;

  // Special tokens in the text are plain text here. decode(encode(x)) == x for every byte string.
  std::vector<int32_t> encode(std::string_view text) const;
  // Special tokens are recognised.
  std::vector<int32_t> encode_with_special_tokens(std::string_view text) const;
  std::string decode(std::span<const int32_t> ids) const;

  int64_t vocab_size() const;  // ids are below it
  std::optional<int32_t> end_of_text() const;
  bool is_special(int32_t id) const;
  std::string_view token_bytes(int32_t id) const;  // what decode writes for it
  // Equal for two tokenizers that give the same ids.
  uint64_t fingerprint() const;

 private:
  class Implementation;
  explicit Tokenizer(std::shared_ptr<const Implementation> implementation);
  std::shared_ptr<const Implementation> implementation_;
};

}  // namespace lockstep
