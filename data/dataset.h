#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/file.h"
#include "data/tokenizer.h"

namespace lockstep {

// The tokens of one split, memory-mapped from its shards, as one stream: documents one after the
// other, each followed by the end-of-text token.
class TokenStream {
 public:
  int64_t size() const { return size_; }    // tokens
  int64_t bytes() const { return bytes_; }  // of text that they encode
  // Copies tokens [begin, begin + count) to out. CHECKs the range; throws DataError when a stored
  // id is not below the vocabulary size.
  void copy(int64_t begin, int64_t count, int32_t* out) const;

 private:
  friend class Dataset;
  struct Shard {
    MappedFile file;
    std::filesystem::path path;
    int64_t begin, end;  // tokens of the stream
    int token_bytes;     // 2 or 4
  };
  std::vector<Shard> shards_;
  int64_t size_ = 0, bytes_ = 0, vocab_size_ = 0;
};

// A dataset folder, as `lockstep prepare` writes it: tokenizer.json, dataset.json, train-*.bin,
// validation-*.bin (docs/dataset_format.md). Opening checks every shard's magic and size.
class Dataset {
 public:
  static Dataset open(const std::filesystem::path& folder);  // throws DataError

  const std::filesystem::path& folder() const { return folder_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& tokenizer_json() const { return tokenizer_json_; }
  bool has_split(const std::string& name) const;
  // "train" or "validation"; throws DataError, naming those there are, for another.
  const TokenStream& split(const std::string& name) const;

 private:
  static TokenStream open_split(const std::filesystem::path& folder, const std::string& name,
                                const nlohmann::json& description, int64_t vocab_size);
  std::filesystem::path folder_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string tokenizer_json_;
  std::vector<std::pair<std::string, TokenStream>> splits_;
};

}  // namespace lockstep
