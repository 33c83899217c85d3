#include "launch/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "core/check.h"

namespace lockstep::launch {

RunLock::~RunLock() {
  if (folder_ >= 0) ::close(folder_);
}

void RunLock::take(const std::filesystem::path& run) {
  if (folder_ >= 0) return;
  folder_ = ::open(run.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_ >= 0 && ::flock(folder_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw UsageError(
        "another program is training in {} right now; stop it, or choose another --run",
        run.string());
  }
}

}  // namespace lockstep::launch
