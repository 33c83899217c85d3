#pragma once
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

// Files, with errors that name the file and the reason. All throw DataError.
namespace lockstep {

std::string read_file(const std::filesystem::path& path);

// Whether what is written shall outlive the machine's loss of power. To flush may take minutes
// while gigabytes go to the same disk; where a file is soon written anew, it need not be.
enum class Flush { no, yes };

// Writes a temporary file beside `path`, flushes it to disk unless told not to, and renames it: a
// reader sees the old content or the new, never a part; where it was not flushed and power is lost,
// perhaps neither. Where writing fails the temporary file is removed.
void write_file_atomically(const std::filesystem::path& path, std::string_view content,
                           Flush flush = Flush::yes);

// Flushes a file's or a folder's entries to disk.
void flush_to_disk(const std::filesystem::path& path);

// A read-only mapping of a whole file.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lockstep
