#include "data/shard.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "shards are little-endian");

struct Layout {
  int32_t magic, version;
};

Layout layout(int token_bytes) {
  return token_bytes == 2 ? Layout{20240520, 1} : Layout{20240801, 7};
}

constexpr size_t kWriteBytes = 1 << 20;  // a whole number of ids

}  // namespace

int shard_token_bytes(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

std::string xxh3_hex(std::span<const std::byte> bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

int64_t check_shard(const fs::path& path, std::span<const std::byte> bytes, int token_bytes) {
  std::array<int32_t, 3> header{};
  const auto size = static_cast<int64_t>(bytes.size());
  if (size < kShardHeaderBytes) {
    throw DataError("{} is truncated: {} bytes, its header alone has {}; prepare the text again",
                    path.string(), size, kShardHeaderBytes);
  }
  std::memcpy(header.data(), bytes.data(), sizeof(header));
  const Layout want = layout(token_bytes);
  if (header[0] != want.magic || header[1] != want.version) {
    throw DataError(
        "{} is not a shard of {}-byte ids: magic {} and version {}, not {} and {}\nPrepare the "
        "text again.",
        path.string(), token_bytes, header[0], header[1], want.magic, want.version);
  }
  const int64_t want_bytes = kShardHeaderBytes + int64_t{header[2]} * token_bytes;
  if (header[2] < 0 || want_bytes != size) {
    throw DataError(
        "{} is {}: {} bytes, its header promises {} tokens, {} bytes; prepare the text again",
        path.string(), size < want_bytes ? "truncated" : "damaged", size, header[2], want_bytes);
  }
  return header[2];
}

// One shard under way: a buffer in front of a file descriptor.
class ShardWriter::File {
 public:
  explicit File(const fs::path& path)
      : path_(path),
        descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail("create");
    buffer_.reserve(kWriteBytes);
    buffer_.resize(kShardHeaderBytes);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  template <class Id>
  void append(std::span<const int32_t> ids) {
    tokens_ += static_cast<int64_t>(ids.size());
    while (!ids.empty()) {
      const size_t end = buffer_.size();
      const size_t count = std::min(ids.size(), (kWriteBytes - end) / sizeof(Id));
      buffer_.resize(end + count * sizeof(Id));
      for (size_t i = 0; i < count; i++) {
        const Id stored = static_cast<Id>(ids[i]);
        std::memcpy(buffer_.data() + end + i * sizeof(Id), &stored, sizeof(Id));
      }
      if (buffer_.size() == kWriteBytes) write_out();
      ids = ids.subspan(count);
    }
  }

  void finish(int token_bytes) {
    write_out();
    const Layout begin = layout(token_bytes);
    const std::array<int32_t, 3> header{begin.magic, begin.version, static_cast<int32_t>(tokens_)};
    if (::pwrite(descriptor_, header.data(), sizeof(header), 0) != sizeof(header)) fail("write");
    if (::fsync(descriptor_) != 0) fail("flush");
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("close");
  }

  int64_t tokens() const { return tokens_; }
  const fs::path& path() const { return path_; }

 private:
  void write_out() {
    for (size_t done = 0; done < buffer_.size();) {
      const ssize_t n = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write");
      done += static_cast<size_t>(n);
    }
    buffer_.clear();
  }
  [[noreturn]] void fail(std::string_view what) const {
    const int reason = errno;
    throw DataError("cannot {} {}: {}", what, path_.string(), std::strerror(reason));
  }

  fs::path path_;
  int descriptor_;
  std::vector<char> buffer_;
  int64_t tokens_ = 0;
};

ShardWriter::ShardWriter(fs::path folder, std::string name, int64_t vocab_size, int64_t max_tokens)
    : folder_(std::move(folder)),
      name_(std::move(name)),
      token_bytes_(shard_token_bytes(vocab_size)),
      max_tokens_(max_tokens) {
  CHECK(max_tokens >= 1 && max_tokens <= INT32_MAX);
}

ShardWriter::~ShardWriter() = default;

void ShardWriter::append(std::span<const int32_t> ids) {
  while (!ids.empty()) {
    if (!file_) {
      file_ = std::make_unique<File>(folder_ / fmt::format("{}-{:05}.bin", name_, shards_.size()));
    }
    const int64_t room = max_tokens_ - file_->tokens();
    const auto part = ids.first(std::min(ids.size(), static_cast<size_t>(room)));
    token_bytes_ == 2 ? file_->append<uint16_t>(part) : file_->append<uint32_t>(part);
    ids = ids.subspan(part.size());
    if (file_->tokens() == max_tokens_) finish_file();
  }
}

void ShardWriter::finish_file() {
  file_->finish(token_bytes_);
  // Reading it back costs little (it is in memory still) and gives the checksum of what a reader
  // will see, header included.
  const MappedFile written(file_->path());
  shards_.push_back({file_->path().filename().string(), file_->tokens(),
                     static_cast<int64_t>(written.bytes().size()), xxh3_hex(written.bytes())});
  file_.reset();
}

std::vector<ShardInfo> ShardWriter::finish() {
  if (file_) finish_file();
  return std::move(shards_);
}

}  // namespace lockstep
