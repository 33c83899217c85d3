#include "data/prepare_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

void refuse_existing(const fs::path& output) {
  std::error_code error;
  const fs::file_status status = fs::status(output, error);
  if (!fs::exists(status)) return;
  if (fs::is_directory(status) && fs::is_empty(output, error) && !error) return;
  // What else there is may be someone's texts.
  const bool dataset = fs::exists(output / "dataset.json", error);
  throw UsageError("{} exists already and is not overwritten\n{}", output.string(),
                   dataset ? fmt::format("Remove it first (rm -r {}), or give another --output.",
                                         output.string())
                           : "Give another --output.");
}

[[noreturn]] void fail(std::string_view what, const fs::path& path, int reason) {
  throw DataError("cannot {} {}: {}", what, path.string(), std::strerror(reason));
}

// The folder's files but not itself, so that a lock on it stays one.
void clear(const fs::path& folder) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    fs::remove_all(entry.path(), ignored);
  }
}

}  // namespace

PartialFolder::PartialFolder(fs::path final_path)
    : final_path_(fs::absolute(final_path).lexically_normal()) {
  if (!final_path_.has_filename()) final_path_ = final_path_.parent_path();
  refuse_existing(final_path_);
  path_ = final_path_.parent_path() / fmt::format(".{}.partial", final_path_.filename().string());
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) fail("create", path_, error.value());
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) fail("open", path_, errno);
  // Where the file system has no locks, two writers at once are not noticed.
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    throw UsageError("another program is writing {} right now", final_path_.string());
  }
  clear(path_);
}

PartialFolder::~PartialFolder() {
  if (!committed_) {
    clear(path_);
    ::rmdir(path_.c_str());
  }
  ::close(lock_);
}

void PartialFolder::commit() {
  flush_to_disk(path_);
  if (::rename(path_.c_str(), final_path_.c_str()) != 0) fail("rename", path_, errno);
  committed_ = true;
  flush_to_disk(final_path_.parent_path());
}

}  // namespace lockstep
