#pragma once
#include <filesystem>

namespace lockstep {

// A folder that gets its name only when it is complete. It is filled as .NAME.partial beside it and
// renamed at the end; not committed, it is removed. One writer at a time.
class PartialFolder {
 public:
  // Removes what a dead writer left behind. Throws UsageError when `final_path` exists and is not
  // an empty folder, or another program is writing there; DataError when it cannot be made.
  explicit PartialFolder(std::filesystem::path final_path);
  ~PartialFolder();
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // Flushes the folder to disk and renames it.
  void commit();

 private:
  std::filesystem::path final_path_, path_;
  int lock_ = -1;
  bool committed_ = false;
};

}  // namespace lockstep
