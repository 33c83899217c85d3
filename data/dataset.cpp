#include "data/dataset.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "data/shard.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Widens ids to int32 and returns the largest.
template <class Id>
uint32_t widen(const std::byte* from, int64_t count, int32_t* out) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; i++) {
    Id id;
    std::memcpy(&id, from + i * static_cast<int64_t>(sizeof(Id)), sizeof(Id));
    largest = std::max(largest, static_cast<uint32_t>(id));
    out[i] = static_cast<int32_t>(id);
  }
  return largest;
}

json read_description(const fs::path& folder) {
  const fs::path path = folder / "dataset.json";
  if (!fs::exists(folder)) {
    throw DataError(
        "there is no dataset folder {}\nMake one with `lockstep prepare --input TEXT --output {}`.",
        folder.string(), folder.string());
  }
  if (fs::is_regular_file(folder)) {
    throw DataError(
        "{} is a file, not a dataset folder\nMake one of text with `lockstep prepare --input {} "
        "--output DATASET`.",
        folder.string(), folder.string());
  }
  if (!fs::exists(path)) {
    throw DataError(
        "{} is not a dataset: it has no dataset.json\nMake one with `lockstep prepare --input TEXT "
        "--output DATASET`.",
        folder.string());
  }
  json description = json::parse(read_file(path), nullptr, false);
  if (description.is_discarded()) throw DataError("{} is not valid JSON", path.string());
  return description;
}

}  // namespace

void TokenStream::copy(int64_t begin, int64_t count, int32_t* out) const {
  CHECK(begin >= 0 && count >= 0 && begin + count <= size_, "tokens {} .. {} of {}", begin,
        begin + count, size_);
  auto shard = std::upper_bound(shards_.begin(), shards_.end(), begin,
                                [](int64_t place, const Shard& s) { return place < s.end; });
  for (; count > 0; ++shard) {
    const int64_t part = std::min(count, shard->end - begin);
    const int64_t first = begin - shard->begin;
    const std::byte* from =
        shard->file.bytes().data() + kShardHeaderBytes + first * shard->token_bytes;
    const uint32_t largest = shard->token_bytes == 2 ? widen<uint16_t>(from, part, out)
                                                     : widen<uint32_t>(from, part, out);
    if (largest >= vocab_size_) {
      throw DataError(
          "{} holds token id {} in tokens {} .. {}, but the vocabulary has {}: it is damaged, or "
          "of another tokenizer",
          shard->path.string(), largest, first, first + part, vocab_size_);
    }
    begin += part;
    out += part;
    count -= part;
  }
}

TokenStream Dataset::open_split(const fs::path& folder, const std::string& name, const json& split,
                                int64_t vocab_size) {
  TokenStream stream;
  stream.vocab_size_ = vocab_size;
  stream.bytes_ = split.at("bytes").get<int64_t>();
  for (const json& shard : split.at("shards")) {
    const fs::path path = folder / shard.at("file").get<std::string>();
    MappedFile file(path);
    const int token_bytes = shard_token_bytes(vocab_size);
    const int64_t tokens = check_shard(path, file.bytes(), token_bytes);
    if (shard.at("tokens") != tokens) {
      throw DataError("{} holds {} tokens, dataset.json says {}", path.string(), tokens,
                      shard.at("tokens").dump());
    }
    stream.shards_.push_back(
        {std::move(file), path, stream.size_, stream.size_ + tokens, token_bytes});
    stream.size_ += tokens;
  }
  if (split.at("tokens") != stream.size_) {
    throw DataError("{}: the {} split's shards hold {} tokens, dataset.json says {}",
                    folder.string(), name, stream.size_, split.at("tokens").dump());
  }
  return stream;
}

Dataset Dataset::open(const fs::path& folder) {
  Dataset dataset;
  dataset.folder_ = folder;
  const json description = read_description(folder);
  try {
    if (description.at("format") != 1) {
      throw DataError("{} is of dataset format {}; this program reads format 1", folder.string(),
                      description.at("format").dump());
    }
    const fs::path tokenizer = folder / "tokenizer.json";
    dataset.tokenizer_json_ = read_file(tokenizer);
    if (xxh3_hex(std::as_bytes(std::span(dataset.tokenizer_json_))) !=
        description.at("tokenizer").at("xxh3")) {
      throw DataError("{} is not the tokenizer that this dataset was made with (its XXH3 differs)",
                      tokenizer.string());
    }
    dataset.tokenizer_ = std::make_shared<const Tokenizer>(
        Tokenizer::from_json(dataset.tokenizer_json_, tokenizer.string()));
    const int64_t vocab_size = dataset.tokenizer_->vocab_size();
    if (description.at("tokenizer").at("vocab_size") != vocab_size) {
      throw DataError("{} has {} tokens, dataset.json says {}", tokenizer.string(), vocab_size,
                      description.at("tokenizer").at("vocab_size").dump());
    }
    for (const auto& [name, split] : description.at("splits").items()) {
      dataset.splits_.emplace_back(name, open_split(folder, name, split, vocab_size));
    }
  } catch (const json::exception& error) {
    throw DataError("{}: a field is missing or of the wrong type ({})",
                    (folder / "dataset.json").string(), error.what());
  }
  return dataset;
}

bool Dataset::has_split(const std::string& name) const {
  return std::any_of(splits_.begin(), splits_.end(),
                     [&](const auto& split) { return split.first == name; });
}

const TokenStream& Dataset::split(const std::string& name) const {
  std::string names;
  for (const auto& [split_name, stream] : splits_) {
    if (split_name == name) return stream;
    names += (names.empty() ? "" : ", ") + split_name;
  }
  throw DataError("dataset {} has no split \"{}\"; it has: {}", folder_.string(), name, names);
}

}  // namespace lockstep
