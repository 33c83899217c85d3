#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/shard.h"

namespace lockstep {

// A copy of a dataset in another folder, such as a node's own disk. It lies in
// FOLDER/NAME-CHECKSUM, by the XXH3 of dataset.json, so that another dataset of the same name is
// another copy. Files that are there with the size and XXH3 that dataset.json says are kept; the
// others are copied under another name and renamed, once the original is verified. A lock on
// FOLDER/.NAME-CHECKSUM.lock, let go when the process ends, keeps two processes from copying at
// once: the second waits, and finds the copy.
class DatasetCopy {
 public:
  // Throws DataError when `dataset` is none, or `folder` cannot be made or written.
  DatasetCopy(const std::filesystem::path& dataset, const std::filesystem::path& folder);
  ~DatasetCopy();
  DatasetCopy(const DatasetCopy&) = delete;
  DatasetCopy& operator=(const DatasetCopy&) = delete;

  // Where the copy of `dataset` in `folder` lies, once it is complete.
  static std::filesystem::path path_of(const std::filesystem::path& dataset,
                                       const std::filesystem::path& folder);

  // Copies or verifies the next file, or waits a moment for another process; true when the copy is
  // complete. Throws DataError when a file cannot be copied (a full disk, say) or the original is
  // damaged; then what this object has copied is removed again, and dataset.json: what is left is
  // no dataset.
  bool advance();

  int64_t copied_bytes() const { return copied_bytes_; }  // what was there already not counted

 private:
  bool lock();
  bool is_good(const ShardInfo& file, const std::filesystem::path& path) const;
  void copy(const ShardInfo& file);
  void remove_written();

  std::filesystem::path dataset_, path_;
  std::vector<ShardInfo> files_;  // dataset.json last: with it the copy is a dataset
  size_t next_ = 0;               // of files_
  std::vector<std::filesystem::path> written_;
  int64_t copied_bytes_ = 0;
  int lock_ = -1;
  bool locked_ = false;
};

}  // namespace lockstep
