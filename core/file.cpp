#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(std::string_view what, const fs::path& path) {
  const int reason = errno;
  throw DataError("cannot {} {}: {}", what, path.string(), std::strerror(reason));
}

// A file descriptor that closes itself. `close()` reports what the destructor must swallow.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags, mode_t mode = 0644)
      : path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {
    if (fd_ < 0) fail(flags & O_CREAT ? "create" : "open", path);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  void close() {
    if (::close(std::exchange(fd_, -1)) != 0) fail("close", path_);
  }
  int64_t size() const {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) fail("read", path_);
    if (S_ISDIR(status.st_mode))
      throw DataError("{} is a folder, a file is needed", path_.string());
    return status.st_size;
  }

 private:
  fs::path path_;
  int fd_;
};

void write_and_close(Descriptor& file, const fs::path& path, std::string_view content,
                     Flush flush) {
  for (std::string_view rest = content; !rest.empty();) {
    const ssize_t n = ::write(file.get(), rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write", path);
    rest.remove_prefix(static_cast<size_t>(n));
  }
  if (flush == Flush::yes && ::fsync(file.get()) != 0) fail("flush", path);
  file.close();
}

}  // namespace

std::string read_file(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  std::string content(static_cast<size_t>(file.size()), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = ::read(file.get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("read", path);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  content.resize(done);
  return content;
}

void write_file_atomically(const fs::path& path, std::string_view content, Flush flush) {
  const fs::path temporary = path.string() + ".tmp";
  Descriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
  try {
    write_and_close(file, temporary, content, flush);
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail("rename", temporary);
  } catch (...) {
    ::unlink(temporary.c_str());  // a full disk needs the room
    throw;
  }
  if (flush == Flush::no) return;
  flush_to_disk(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

void flush_to_disk(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  // Some network file systems do not flush folders; their renames are durable by themselves.
  if (::fsync(file.get()) != 0 && errno != EINVAL) fail("flush", path);
}

MappedFile::MappedFile(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  size_ = static_cast<size_t>(file.size());
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) fail("map", path);
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace lockstep
