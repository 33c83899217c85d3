#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <unordered_map>
#include <unordered_set>

#include "core/check.h"
#include "core/file.h"
#include "data/bpe_alphabet.h"
#include "data/pretokenizer_pattern.h"
#include "data/tokenizer_parts.h"

// Tokenizer files by path, and tiktoken's format.
namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr int32_t kMaxRank = 1 << 24;
constexpr size_t kMaxTokenBytes = 4096;  // finding a token's merges takes quadratic time

// How a published encoding splits text, and its special tokens: neither is in the rank file.
struct Encoding {
  std::string_view name;  // prefix of the file's name
  size_t num_ranks;
  std::string_view pattern;
  std::vector<std::pair<std::string, int32_t>> special_tokens;
};

std::vector<std::pair<std::string, int32_t>> llama3_special_tokens() {
  constexpr int32_t kFirst = 128000, kCount = 256;
  std::vector<std::pair<std::string, int32_t>> tokens;
  int reserved = 0;
  for (int32_t i = 0; i < kCount; i++) {
    std::string name;
    switch (i) {
      case 0:
        name = "<|begin_of_text|>";
        break;
      case 1:
        name = "<|end_of_text|>";
        break;
      case 6:
        name = "<|start_header_id|>";
        break;
      case 7:
        name = "<|end_header_id|>";
        break;
      case 9:
        name = "<|eot_id|>";
        break;
      default:
        name = fmt::format("<|reserved_special_token_{}|>", reserved++);
    }
    tokens.emplace_back(std::move(name), kFirst + i);
  }
  return tokens;
}

const std::vector<Encoding>& encodings() {
  static const std::vector<Encoding> kEncodings = {
      {"r50k", 50256, kR50kPattern, {{"<|endoftext|>", 50256}}},
      {"gpt2", 50256, kR50kPattern, {{"<|endoftext|>", 50256}}},
      {"p50k", 50280, kR50kPattern, {{"<|endoftext|>", 50256}}},
      {"cl100k",
       100256,
       kCl100kPattern,
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}}},
      {"o200k", 199998, kO200kPattern, {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}},
      {"llama", 128000, kLlama3Pattern, llama3_special_tokens()},
  };
  return kEncodings;
}

const Encoding& find_encoding(std::string_view name, size_t num_ranks, std::string_view source) {
  for (const Encoding& encoding : encodings()) {
    if (name.starts_with(encoding.name)) return encoding;
  }
  for (const Encoding& encoding : encodings()) {
    if (num_ranks == encoding.num_ranks) return encoding;
  }
  throw DataError(
      "{}: a rank file does not say how text is split, and {} ranks are those of no known "
      "encoding\n"
      "Let its name begin with r50k, p50k, cl100k, o200k or llama, or give a tokenizer.json",
      source, num_ranks);
}

bool decode_base64(std::string_view text, std::string* bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  while (text.ends_with('=')) text.remove_suffix(1);
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == kDigits.npos) return false;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes->push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  return !bytes->empty();
}

// Reads a line "<base64> <rank>".
bool read_rank(std::string_view line, std::string* bytes, int32_t* rank) {
  const size_t space = line.find(' ');
  if (space == line.npos || !decode_base64(line.substr(0, space), bytes)) return false;
  const char* end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data() + space + 1, end, *rank);
  return error == std::errc() && stop == end && *rank >= 0 && *rank < kMaxRank;
}

std::string_view take_line(std::string_view* text) {
  std::string_view line = text->substr(0, text->find('\n'));
  text->remove_prefix(std::min(line.size() + 1, text->size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

// tiktoken merges the adjacent pair whose joined bytes have the lowest rank; a merge list says the
// same with every pair that joins to a token, in the order of that token's rank (among those, as
// Hugging Face's conversion has them).
std::vector<std::pair<int32_t, int32_t>> merges_of_ranks(
    const std::vector<std::string>& bytes_of_rank) {
  std::unordered_map<std::string_view, int32_t> ranks;
  for (size_t rank = 0; rank < bytes_of_rank.size(); rank++) {
    if (!bytes_of_rank[rank].empty()) {
      ranks.emplace(bytes_of_rank[rank], static_cast<int32_t>(rank));
    }
  }
  std::vector<std::pair<int32_t, int32_t>> merges;
  for (const std::string_view token : bytes_of_rank) {
    const size_t first = merges.size();
    for (size_t cut = 1; cut < token.size(); cut++) {
      const auto left = ranks.find(token.substr(0, cut));
      if (left == ranks.end()) continue;
      const auto right = ranks.find(token.substr(cut));
      if (right != ranks.end()) merges.emplace_back(left->second, right->second);
    }
    std::sort(merges.begin() + static_cast<std::ptrdiff_t>(first), merges.end());
  }
  return merges;
}

bool looks_like_ranks(std::string_view content) {
  std::string bytes;
  int32_t rank = 0;
  return read_rank(take_line(&content), &bytes, &rank);
}

Tokenizer load_file(const fs::path& path) {
  const std::string content = read_file(path);
  if (looks_like_ranks(content)) {
    return parse_tiktoken_ranks(content, path.filename().string(), path.string())
        .build(path.string());
  }
  return Tokenizer::from_json(content, path.string());
}

}  // namespace

TokenizerParts parse_tiktoken_ranks(std::string_view content, std::string_view name,
                                    std::string_view source) {
  std::vector<std::string> bytes_of_rank;
  std::unordered_set<std::string> tokens;
  size_t num_ranks = 0;
  for (int number = 1; !content.empty(); number++) {
    const std::string_view line = take_line(&content);
    if (line.empty()) continue;
    std::string bytes;
    int32_t rank = 0;
    if (!read_rank(line, &bytes, &rank)) {
      throw DataError("{}: line {}: '<base64> <rank>' is expected", source, number);
    }
    const auto at = static_cast<size_t>(rank);
    if (bytes.size() > kMaxTokenBytes) {
      throw DataError("{}: line {}: a token of {} bytes", source, number, bytes.size());
    }
    if (at >= bytes_of_rank.size()) bytes_of_rank.resize(at + 1);
    if (!bytes_of_rank[at].empty()) {
      throw DataError("{}: line {}: rank {} is there twice", source, number, rank);
    }
    if (!tokens.insert(bytes).second) {
      throw DataError("{}: line {}: this token is there twice", source, number);
    }
    bytes_of_rank[at] = std::move(bytes);
    num_ranks++;
  }
  const Encoding& encoding = find_encoding(name, num_ranks, source);
  TokenizerParts parts;
  parts.merges = merges_of_ranks(bytes_of_rank);
  for (const std::string& bytes : bytes_of_rank) parts.printed.push_back(print_bytes(bytes));
  parts.steps = {
      {.kind = PreTokenizer::Step::Kind::split, .pattern = std::string(encoding.pattern)},
      {.use_regex = false}};
  parts.ignore_merges = true;
  if (num_ranks == encoding.num_ranks) {
    for (const auto& [content_text, id] : encoding.special_tokens) {
      parts.added_tokens.push_back({.id = id, .content = content_text});
    }
  } else {  // an encoding of the same kind, of another size
    const bool is_llama = encoding.name == "llama";
    parts.added_tokens = {{.id = static_cast<int32_t>(bytes_of_rank.size()),
                           .content = is_llama ? "<|end_of_text|>" : "<|endoftext|>"}};
  }
  return parts;
}

Tokenizer Tokenizer::load(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return load_file(path);
  if (fs::exists(path / "tokenizer.json")) return load_file(path / "tokenizer.json");
  const fs::path vocab = path / "vocab.json", merges = path / "merges.txt";
  if (fs::exists(vocab) && fs::exists(merges)) {
    return parse_gpt2_files(read_file(vocab), read_file(merges), vocab.string(), merges.string())
        .build(vocab.string());
  }
  std::vector<fs::path> rank_files;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".tiktoken") rank_files.push_back(entry.path());
  }
  if (rank_files.size() == 1) return load_file(rank_files[0]);
  throw DataError(
      "{}: no tokenizer there: tokenizer.json, vocab.json with merges.txt, or one .tiktoken file "
      "is "
      "expected",
      path.string());
}

}  // namespace lockstep
