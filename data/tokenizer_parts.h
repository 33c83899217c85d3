#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/pretokenizer.h"
#include "data/tokenizer.h"

namespace lockstep {

// A token with a text of its own, found in texts before they are split (`added_tokens` of a
// tokenizer.json).
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = true;
  bool lstrip = false, rstrip = false;  // takes the white space before it, or after it, along
  bool normalized = false;              // looked for after those that are not
};

// What a tokenizer is made of, as its file has it; the common form of all the formats we read.
struct TokenizerParts {
  // printed[id], as data/bpe_alphabet.h prints bytes; "" where the model has no such token. Tokens
  // whose text stands for no bytes are kept as they are: no merge leads to them.
  std::vector<std::string> printed;
  std::vector<std::pair<int32_t, int32_t>> merges;  // lowest rank first
  std::vector<AddedToken> added_tokens;             // by id
  std::vector<PreTokenizer::Step> steps;            // the last is byte_level, and no other
  bool ignore_merges = false;  // a piece that is a token becomes that token, whatever the merges
  std::string post_processor = "null";  // JSON, carried along; it decides nothing here

  // Checks the parts and builds the tokenizer; `source` names them in errors.
  Tokenizer build(std::string_view source) &&;
};

// tokenizer.json and its parts. Both keep to what TokenizerParts can hold: reading throws DataError
// for the rest, naming `source` and the field.
TokenizerParts parse_tokenizer_json(std::string_view json, std::string_view source);
std::string write_tokenizer_json(const TokenizerParts& parts);

// GPT-2's two files.
TokenizerParts parse_gpt2_files(std::string_view vocab_json, std::string_view merges_txt,
                                std::string_view vocab_source, std::string_view merges_source);

// A tiktoken rank file; `name` is the file's name, which may tell how text is split.
TokenizerParts parse_tiktoken_ranks(std::string_view ranks, std::string_view name,
                                    std::string_view source);

// Reads one line of a merges list, "left right", into two views of it; false when it is not that.
bool split_merge(std::string_view line, std::string_view* left, std::string_view* right);

}  // namespace lockstep
