#pragma once
#include <filesystem>

namespace lockstep::launch {

// Keeps a second program from training in the same run folder, where each would clear away the
// checkpoint that the other is writing. Let go when the process ends, however it ends. Where the
// file system has no locks, two at once are not noticed.
class RunLock {
 public:
  RunLock() = default;
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // Does nothing while the folder is not there yet, and once it is held. Throws UsageError when
  // another program holds it.
  void take(const std::filesystem::path& run);

 private:
  int folder_ = -1;
};

}  // namespace lockstep::launch
