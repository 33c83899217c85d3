#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace lockstep {

// A file open for reading, at any place and by any thread. Failures, a file that ends too early
// among them, are DataErrors with the path and the reason.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }  // bytes, when it was opened
  void read_at(uint64_t offset, void* out, uint64_t size) const;

 private:
  std::filesystem::path path_;
  int descriptor_;
  uint64_t size_ = 0;
};

// A new file being written; each failure is a DataError with the path and the reason. Closed, but
// neither flushed nor removed, when it goes out of scope.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);  // replaces what is there
  OutputFile(OutputFile&&) = delete;
  ~OutputFile();

  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  void append(std::span<const std::byte> bytes);
  void append(std::string_view text);
  void resize(uint64_t size);
  void flush_and_close();  // to disk

 private:
  [[noreturn]] void fail(const char* what) const;

  std::filesystem::path path_;
  int descriptor_;
  uint64_t end_ = 0;
};

// Renames, replacing `to` if it is a file. The folder must be flushed for it to last.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace lockstep
