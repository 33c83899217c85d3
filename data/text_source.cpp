#include "data/text_source.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>

#include "core/check.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBlockBytes = 256 << 10;
constexpr size_t kCutSearchBytes = 64 << 10;
constexpr size_t kMaxLineBytes = 256 << 20;

std::string lower_extension(fs::path path) {
  if (path.extension() == ".gz") path = path.stem();
  std::string extension = path.extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return extension;
}

InputFile input_file(const fs::path& path) {
  const std::string extension = lower_extension(path);
  const bool json = extension == ".jsonl" || extension == ".ndjson" || extension == ".json";
  return {path, json, static_cast<int64_t>(fs::file_size(path))};
}

void find_in_folder(const fs::path& folder, std::vector<InputFile>& files) {
  std::vector<fs::path> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().front() != '.') paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths) {
    // A link to a folder is not followed: it may lead back.
    if (fs::is_directory(path)) {
      if (!fs::is_symlink(path)) find_in_folder(path, files);
    } else if (fs::is_regular_file(path)) {
      files.push_back(input_file(path));
    } else if (!fs::exists(path)) {
      throw DataError("cannot read {}: it is a link to nothing", path.string());
    }
  }
}

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

size_t next_character(std::string_view text, size_t place) {
  // A UTF-8 character has at most three continuation bytes; other bytes may be parted anywhere.
  for (int i = 0; i < 3 && place < text.size() && is_continuation(text[place]); i++) place++;
  return place;
}

// Length of the valid UTF-8 character that begins here (Unicode, table 3-7); 0 when none does.
size_t character_length(const unsigned char* c, size_t size) {
  const auto continues = [&](size_t i, int low = 0x80, int high = 0xbf) {
    return i < size && c[i] >= low && c[i] <= high;
  };
  if (c[0] < 0x80) return 1;
  if (c[0] >= 0xc2 && c[0] <= 0xdf) return continues(1) ? 2 : 0;
  if (c[0] >= 0xe0 && c[0] <= 0xef) {
    const int low = c[0] == 0xe0 ? 0xa0 : 0x80, high = c[0] == 0xed ? 0x9f : 0xbf;
    return continues(1, low, high) && continues(2) ? 3 : 0;
  }
  if (c[0] >= 0xf0 && c[0] <= 0xf4) {
    const int low = c[0] == 0xf0 ? 0x90 : 0x80, high = c[0] == 0xf4 ? 0x8f : 0xbf;
    return continues(1, low, high) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

// Whether a UTF-8 character that is not white space (Unicode's White_Space) begins at the place.
bool is_solid(std::string_view text, size_t place) {
  const auto* c = reinterpret_cast<const unsigned char*>(text.data()) + place;
  const size_t length = character_length(c, text.size() - place);
  if (length == 0) return false;
  if (length == 1) return *c > ' ' && *c != 0x7f;
  if (length == 2) return !(c[0] == 0xc2 && (c[1] == 0x85 || c[1] == 0xa0));
  if (length == 4) return true;
  const int code = (c[0] & 0xf) << 12 | (c[1] & 0x3f) << 6 | (c[2] & 0x3f);
  return !(code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
           code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000);
}

bool is_solid_before(std::string_view text, size_t place) {
  size_t begin = place - 1;
  while (begin > 0 && place - begin < 4 && is_continuation(text[begin])) begin--;
  return is_solid(text, begin);
}

// string_view::rfind, at many bytes a time.
size_t rfind(std::string_view text, char c, size_t from) {
  const void* found = ::memrchr(text.data(), c, std::min(from + 1, text.size()));
  return found == nullptr ? std::string_view::npos
                          : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

size_t count_documents(std::string_view lines) {
  size_t count = 0;
  while (!lines.empty()) {
    const size_t end = lines.find('\n');
    if (!is_blank(lines.substr(0, end))) count++;
    lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + 1);
  }
  return count;
}

// Picks one top-level field out of a JSON object without building the rest.
class FieldReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit FieldReader(const std::string& field) : field_(field) {}
  bool is_object = false, found = false, is_string = false;
  std::string value;
  size_t error_column = 0;

  bool null() override { return scalar(); }
  bool boolean(bool) override { return scalar(); }
  bool number_integer(number_integer_t) override { return scalar(); }
  bool number_unsigned(number_unsigned_t) override { return scalar(); }
  bool number_float(number_float_t, const string_t&) override { return scalar(); }
  bool binary(binary_t&) override { return scalar(); }
  bool string(string_t& text) override {
    if (wanted()) {
      value = std::move(text);
      is_string = true;
    }
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ == 1) at_field_ = name == field_;
    return true;
  }
  bool start_object(size_t) override {
    if (depth_ == 0) is_object = true;
    return open();
  }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    error_column = position;
    return false;
  }

 private:
  // Whether the value that begins here is the field's; the last of several counts, as in Python.
  bool wanted() {
    if (depth_ != 1 || !at_field_) return false;
    found = true;
    is_string = false;
    return true;
  }
  bool scalar() {
    wanted();
    return true;
  }
  bool open() {
    wanted();
    depth_++;
    return true;
  }
  bool close() {
    depth_--;
    return true;
  }

  const std::string& field_;
  int depth_ = 0;
  bool at_field_ = false;
};

std::string json_document(std::string_view line, const std::string& field,
                          const std::string& place) {
  FieldReader reader(field);
  const bool parsed = nlohmann::json::sax_parse(line.begin(), line.end(), &reader);
  if (!parsed) {
    throw DataError("{}: broken JSON at column {}\nEach line must be one JSON object in UTF-8.",
                    place, reader.error_column);
  }
  if (!reader.is_object) throw DataError("{}: not a JSON object", place);
  if (!reader.found) {
    throw DataError("{}: no field \"{}\"\nName the field that holds the text with --field.", place,
                    field);
  }
  if (!reader.is_string) throw DataError("{}: field \"{}\" is not a string", place, field);
  return std::move(reader.value);
}

}  // namespace

std::vector<InputFile> find_inputs(const std::vector<fs::path>& inputs) {
  std::vector<InputFile> files;
  for (const fs::path& input : inputs) {
    try {
      if (!fs::exists(input)) throw DataError("no such file or folder: {}", input.string());
      if (fs::is_directory(input)) {
        const size_t before = files.size();
        find_in_folder(input, files);
        if (files.size() == before) throw DataError("no files in folder {}", input.string());
      } else if (fs::is_regular_file(input)) {
        files.push_back(input_file(input));
      } else {
        throw DataError("{} is not a regular file: the input is read several times",
                        input.string());
      }
    } catch (const fs::filesystem_error& error) {
      throw DataError("cannot read {}: {}", error.path1().string(), error.code().message());
    }
  }
  return files;
}

size_t validation_cut(std::string_view text, size_t from) {
  if (from == 0) return 0;
  const size_t newline = text.substr(0, from + kCutSearchBytes).find('\n', from - 1);
  if (newline != std::string_view::npos && newline + 1 < text.size()) return newline + 1;
  return next_character(text, from);
}

size_t safe_cut(std::string_view text, size_t limit) {
  // A slash after a newline joins the punctuation before it in o200k's pattern.
  const auto stands_alone = [&](size_t newline) {
    return newline + 1 < text.size() && is_solid_before(text, newline) &&
           is_solid(text, newline + 1) && text[newline + 1] != '/';
  };
  for (size_t end = limit; end > limit / 2;) {
    const size_t newline = rfind(text, '\n', end - 1);
    if (newline == std::string_view::npos || newline <= limit / 2) break;
    if (stands_alone(newline) && newline + 1 <= limit) return newline + 1;
    end = newline;
  }
  for (size_t end = limit; end > limit / 2;) {
    const size_t space = rfind(text, ' ', end - 1);
    if (space == std::string_view::npos || space <= limit / 2) break;
    if (is_letter(text[space - 1]) && space + 1 < text.size() && is_letter(text[space + 1])) {
      return space;
    }
    end = space;
  }
  size_t place = limit;
  for (int i = 0; i < 3 && is_continuation(text[place]); i++) place--;
  return is_continuation(text[place]) ? limit : place;
}

int64_t invalid_utf8_bytes(std::string_view text) {
  const auto* data = reinterpret_cast<const unsigned char*>(text.data());
  int64_t invalid = 0;
  for (size_t i = 0; i < text.size();) {
    uint64_t word = 0;
    if (i + sizeof(word) <= text.size()) {
      std::memcpy(&word, data + i, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        i += sizeof(word);
        continue;
      }
    }
    const size_t length = character_length(data + i, text.size() - i);
    if (length == 0) invalid++;
    i += std::max<size_t>(length, 1);
  }
  return invalid;
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos;
}

// One file's content, decompressed where it is gzip (any number of members one after the other).
class TextReader::Source {
 public:
  explicit Source(const InputFile& file) : path_(file.path) {
    const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) fail(std::strerror(errno));
    file_ = ::gzdopen(descriptor, "rb");
    if (file_ == nullptr) {
      ::close(descriptor);
      fail("out of memory");
    }
    ::gzbuffer(file_, kBlockBytes);
    if (path_.extension() == ".gz" && file.size_bytes > 0 && ::gzdirect(file_) != 0) {
      ::gzclose(file_);
      fail("its name ends in .gz, but it is not gzip-compressed");
    }
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  ~Source() { ::gzclose(file_); }

  // Fewer bytes than asked for mean the end of the file.
  size_t read(char* out, size_t size) {
    size_t done = 0;
    while (done < size) {
      errno = 0;
      const int n = ::gzread(file_, out + done, static_cast<unsigned>(size - done));
      const int reason = errno;
      int status = Z_OK;
      const char* message = ::gzerror(file_, &status);
      if (status == Z_ERRNO) fail(std::strerror(reason));
      if (status == Z_BUF_ERROR) fail("the gzip data is truncated: fetch or pack the file again");
      if (n < 0 || status < 0) fail(fmt::format("damaged gzip data ({})", message));
      if (n == 0) break;
      done += static_cast<size_t>(n);
    }
    return done;
  }
  int64_t consumed_bytes() const { return std::max<int64_t>(0, ::gzoffset(file_)); }

 private:
  [[noreturn]] void fail(std::string_view reason) const {
    throw DataError("cannot read {}: {}", path_.string(), reason);
  }
  fs::path path_;
  gzFile file_;
};

TextReader::TextReader(std::span<const InputFile> files, std::optional<InputCut> cut)
    : files_(files), cut_(cut) {}
TextReader::~TextReader() = default;

void TextReader::fill(size_t size) {
  if (end_of_file_ || buffer_.size() >= size) return;
  const size_t before = buffer_.size();
  buffer_.resize(size);
  const size_t n = source_->read(buffer_.data() + before, size - before);
  buffer_.resize(before + n);
  end_of_file_ = before + n < size;
}

// The first bytes of the buffer, which keeps the rest.
std::string TextReader::take(size_t size) {
  std::string rest = buffer_.substr(size);
  buffer_.resize(size);
  buffer_.swap(rest);
  return rest;
}

void TextReader::open_next() {
  source_ = std::make_unique<Source>(files_[file_]);
  end_of_file_ = false;
  line_ = 1;
  offset_ = 0;
  document_begins_ = true;
  after_cut_ = false;
  fill(3);
  if (buffer_.starts_with("\xef\xbb\xbf")) buffer_.clear();
}

void TextReader::close() {
  source_.reset();
  finished_bytes_ += files_[file_].size_bytes;
  file_++;
}

std::optional<TextBlock> TextReader::next() {
  for (;;) {
    if (!source_) {
      if (file_ == files_.size()) return {};
      open_next();
    }
    const InputFile& file = files_[file_];
    std::optional<TextBlock> block = file.json_lines ? next_lines() : next_piece();
    if (block) {
      block->file = &file;
      block->consumed_bytes = finished_bytes_ + (source_ ? source_->consumed_bytes() : 0);
      return block;
    }
  }
}

std::optional<TextBlock> TextReader::next_lines() {
  fill(kBlockBytes);
  while (!end_of_file_ && buffer_.find('\n') == std::string::npos) {
    if (buffer_.size() >= kMaxLineBytes) {
      throw DataError("{}:{}: a line of more than {} MiB; each line must be one JSON object",
                      files_[file_].path.string(), line_, kMaxLineBytes >> 20);
    }
    fill(buffer_.size() * 2);
  }
  TextBlock block;
  const size_t size = end_of_file_ ? buffer_.size() : buffer_.rfind('\n') + 1;
  block.text = take(size);
  block.first_line = line_;
  block.first_document = document_;
  block.documents = static_cast<int64_t>(count_documents(block.text));
  line_ += std::count(block.text.begin(), block.text.end(), '\n');
  document_ += block.documents;
  if (end_of_file_) close();
  if (block.documents == 0) return {};
  return block;
}

TextBlock TextReader::next_piece() {
  fill(kBlockBytes + kCutSearchBytes);
  TextBlock block;
  block.first_document = document_;
  block.documents = 1;

  bool is_cut = false;
  size_t size = 0;
  if (cut_ && cut_->document == document_ && !after_cut_ && cut_->offset >= offset_ &&
      cut_->offset - offset_ < static_cast<int64_t>(std::min(buffer_.size(), kBlockBytes))) {
    size = validation_cut(buffer_, static_cast<size_t>(cut_->offset - offset_));
    is_cut = size > 0;
    after_cut_ = !is_cut;  // a cut at the beginning: all is behind it
  }
  if (!is_cut) {
    const bool rest = end_of_file_ && buffer_.size() <= kBlockBytes;
    size = rest ? buffer_.size() : safe_cut(buffer_, kBlockBytes);
  }
  block.text = take(size);
  offset_ += static_cast<int64_t>(size);
  const bool file_ends = end_of_file_ && buffer_.empty();
  block.document_begins = document_begins_;
  block.document_ends = is_cut || file_ends;
  block.after_cut = after_cut_;
  document_begins_ = is_cut;
  if (is_cut) after_cut_ = true;
  if (file_ends) {
    document_++;
    close();
  }
  return block;
}

std::vector<std::string> json_documents(const TextBlock& block, const std::string& field) {
  std::vector<std::string> documents;
  documents.reserve(static_cast<size_t>(block.documents));
  int64_t number = block.first_line;
  for (std::string_view rest = block.text; !rest.empty(); number++) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (is_blank(line)) continue;
    const std::string place = fmt::format("{}:{}", block.file->path.string(), number);
    documents.push_back(json_document(line, field, place));
  }
  return documents;
}

}  // namespace lockstep
