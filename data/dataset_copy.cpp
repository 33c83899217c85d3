#include "data/dataset_copy.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

ShardInfo describe(const std::string& name, const std::string& content) {
  return {name, 0, static_cast<int64_t>(content.size()),
          xxh3_hex(std::as_bytes(std::span(content)))};
}

std::string description_of(const fs::path& dataset) { return read_file(dataset / "dataset.json"); }

// What dataset.json says of the files beside it.
std::vector<ShardInfo> files_of(const fs::path& dataset) {
  const std::string text = description_of(dataset);
  std::vector<ShardInfo> files{describe("tokenizer.json", read_file(dataset / "tokenizer.json"))};
  try {
    const json description = json::parse(text);
    for (const json& split : description.at("splits")) {
      for (const json& shard : split.at("shards")) {
        files.push_back(
            {shard.at("file"), shard.at("tokens"), shard.at("size_bytes"), shard.at("xxh3")});
      }
    }
  } catch (const json::exception& error) {
    throw DataError("{}: a field is missing or of the wrong type ({})",
                    (dataset / "dataset.json").string(), error.what());
  }
  files.push_back(describe("dataset.json", text));
  return files;
}

}  // namespace

fs::path DatasetCopy::path_of(const fs::path& dataset, const fs::path& folder) {
  const fs::path name = fs::absolute(dataset / "").lexically_normal().parent_path().filename();
  return folder / fmt::format("{}-{}", name.string(), describe("", description_of(dataset)).xxh3);
}

DatasetCopy::DatasetCopy(const fs::path& dataset, const fs::path& folder)
    : dataset_(dataset), path_(path_of(dataset, folder)), files_(files_of(dataset)) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) {
    throw DataError("cannot make {} for a copy of {}: {}", path_.string(), dataset.string(),
                    error.message());
  }
  const fs::path lock = folder / fmt::format(".{}.lock", path_.filename().string());
  // Another user's can be read only, which is enough to lock it.
  lock_ = ::open(lock.c_str(), O_RDONLY | O_CLOEXEC);
  if (lock_ < 0 && errno == ENOENT) {
    lock_ = ::open(lock.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC, 0666);
  }
  if (lock_ < 0) throw DataError("cannot create {}: {}", lock.string(), std::strerror(errno));
}

DatasetCopy::~DatasetCopy() { ::close(lock_); }

bool DatasetCopy::lock() {
  if (locked_) return true;
  locked_ = ::flock(lock_, LOCK_EX | LOCK_NB) == 0;
  if (!locked_ && errno != EWOULDBLOCK && errno != EINTR) {
    throw DataError("{} cannot be locked ({}); a node's own disk can", path_.string(),
                    std::strerror(errno));
  }
  return locked_;
}

bool DatasetCopy::is_good(const ShardInfo& file, const fs::path& path) const {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return !error && size == static_cast<uintmax_t>(file.size_bytes) &&
         xxh3_hex(MappedFile(path).bytes()) == file.xxh3;
}

void DatasetCopy::copy(const ShardInfo& file) {
  const fs::path from = dataset_ / file.file;
  if (!is_good(file, from)) {
    throw DataError(
        "{} is damaged: its size or XXH3 is not that of dataset.json\nprepare the dataset again",
        from.string());
  }
  const MappedFile original(from);
  std::error_code error;
  fs::create_directories(path_, error);  // another process that failed removes it
  written_.push_back(path_ / file.file);
  write_file_atomically(written_.back(), {reinterpret_cast<const char*>(original.bytes().data()),
                                          original.bytes().size()});
  copied_bytes_ += file.size_bytes;
}

void DatasetCopy::remove_written() {
  std::error_code ignored;
  for (const fs::path& file : written_) fs::remove(file, ignored);
  fs::remove(path_ / "dataset.json", ignored);
  fs::remove(path_, ignored);  // where it is empty now
}

bool DatasetCopy::advance() {
  if (next_ == files_.size()) return true;
  if (!lock()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return false;
  }
  const ShardInfo& file = files_[next_];
  try {
    if (!is_good(file, path_ / file.file)) copy(file);
  } catch (...) {
    remove_written();
    throw;
  }
  if (++next_ < files_.size()) return false;
  ::flock(lock_, LOCK_UN);
  return true;
}

}  // namespace lockstep
