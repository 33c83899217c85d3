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

struct InputFile {
  std::filesystem::path path;
  bool json_lines;     // else plain text, one document
  int64_t size_bytes;  // on disk
};

// The regular files that the inputs name: files as given, folders with every file below them in the
// order of their names. Throws DataError for an input that is missing, not a file or folder, or a
// folder without files.
std::vector<InputFile> find_inputs(const std::vector<std::filesystem::path>& inputs);

// Where the input is cut in two: after byte `offset` of document `document`, at the end of the line
// (validation_cut).
struct InputCut {
  int64_t document, offset;
};

// Where to cut a text at byte `from` or soon after: the beginning of the next line, if one begins
// before the end of the text and within 64 KiB, else the next UTF-8 character.
size_t validation_cut(std::string_view text, size_t from);

// Where a text longer than `limit` may be cut so that encoding its parts gives the tokens of the
// whole, as far as the pre-tokenizer patterns of GPT-2, cl100k, o200k and Llama 3 go: after a
// newline that stands alone between two characters that are not white space, or before a space
// between two ASCII letters. Where the text before `limit` has no such place: at a UTF-8 character.
size_t safe_cut(std::string_view text, size_t limit);

// Bytes that are not part of a valid UTF-8 character.
int64_t invalid_utf8_bytes(std::string_view text);
bool is_blank(std::string_view text);  // empty, or only ASCII white space

// A run of the input: a piece of one plain-text document, or some whole lines of JSON.
struct TextBlock {
  const InputFile* file = nullptr;
  std::string text;
  int64_t first_document = 0;                         // of the whole input, from 0
  int64_t documents = 0;                              // JSON: lines that are not blank; text: 1
  int64_t first_line = 1;                             // JSON: of the file, from 1
  bool document_begins = true, document_ends = true;  // text
  bool after_cut = false;                             // text: belongs behind the InputCut
  int64_t consumed_bytes = 0;                         // of all files, on disk
};

// Reads input files as a stream of blocks of bounded size (only a JSON line longer than that makes
// a longer one). gzip is known by its first bytes, whatever the file's name. A byte order mark is
// left out. Throws DataError.
class TextReader {
 public:
  explicit TextReader(std::span<const InputFile> files, std::optional<InputCut> cut = {});
  ~TextReader();
  std::optional<TextBlock> next();  // none: the end

 private:
  class Source;
  void open_next();
  void close();
  void fill(size_t size);
  std::string take(size_t size);
  std::optional<TextBlock> next_lines();
  TextBlock next_piece();

  std::span<const InputFile> files_;
  std::optional<InputCut> cut_;
  size_t file_ = 0;  // the open one, or the next
  std::unique_ptr<Source> source_;
  std::string buffer_;           // read, not handed out yet
  bool end_of_file_ = false;     // nothing beyond the buffer
  int64_t finished_bytes_ = 0;   // on disk, of the files before this one
  int64_t document_ = 0;         // the next one's index
  int64_t line_ = 1;             // JSON
  int64_t offset_ = 0;           // text: of the buffer in its document
  bool document_begins_ = true;  // text
  bool after_cut_ = false;
};

// The documents of a block of JSON lines: the strings that `field` names. Throws DataError with
// file and line for a line that is not a JSON object, or lacks the field.
std::vector<std::string> json_documents(const TextBlock& block, const std::string& field);

}  // namespace lockstep
