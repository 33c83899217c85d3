#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/binary_file.h"
#include "checkpoints/hdf5.h"
#include "core/tensor.h"

// The form that all our files share (docs/checkpoint_format.md): an HDF5 file for everybody else,
// with a user block in front that says, for our own reader, what the file is, where its bytes are,
// and their checksums.
//
//   0   "LOCKSTEP"                      40  size of the manifest, bytes
//   8   version of the format (1)       48  seal
//   16  size of the user block, bytes   56  manifest: JSON
//   24  size of the file, bytes         ... HDF5
//   32  bytes a block of data
//
// (little-endian uint64 each). `data` are the datasets of numbers, checksummed by blocks; every
// other byte of the file, the block checksums among them, is under the seal, one XXH3 sum. So each
// byte is covered, a reader of a part verifies just that part, and HDF5 never parses what we read.
namespace lockstep {

inline constexpr uint64_t kFormatVersion = 1;
inline constexpr uint64_t kBlockBytes = uint64_t{1} << 20;

// A dataset of numbers, by its path in the HDF5 file.
struct DataRange {
  std::string name;
  uint64_t offset = 0, size = 0;  // bytes
};

struct DataSpec {
  std::string name;
  Shape shape;
  hdf5::NumberType type = hdf5::NumberType::float32;
  uint64_t size_bytes() const {
    return static_cast<uint64_t>(shape.size()) * hdf5::size_bytes(type);
  }
};

// What stands in a file to be written.
struct SealedFileContent {
  nlohmann::json manifest;  // an object; "data", "texts" and "block_checksums" are added
  std::vector<DataSpec> data;
  // The bytes of data[i]: asked for once each, in order; they must live until the next call.
  std::function<std::span<const std::byte>(size_t i)> data_bytes;
  std::vector<std::pair<std::string, std::string>> texts;  // paths and contents
  // Adds groups, attributes and virtual datasets for those who read with HDF5.
  std::function<void(hid_t file)> describe;
};

struct FileIdentity {
  uint64_t size = 0;  // bytes
  uint64_t seal = 0;
};

// Writes a new file, flushed to disk. Throws DataError when the disk does not take it; then a part
// of the file may be left, which no reader accepts.
FileIdentity write_sealed_file(const std::filesystem::path& path, const SealedFileContent& content);

// A file open for reading, its seal verified. Safe on any content.
class SealedFile {
 public:
  explicit SealedFile(std::filesystem::path path);  // throws DataError

  const std::filesystem::path& path() const { return file_.path(); }
  FileIdentity identity() const { return identity_; }
  const nlohmann::json& manifest() const { return manifest_; }
  const std::vector<DataRange>& data() const { return data_; }
  std::string text(const std::string& name) const;  // empty when there is none

  // Reads bytes [begin, begin + out.size()) of data()[index] and verifies every block that they
  // touch, in parallel. Throws DataError on a checksum that does not fit.
  void read(size_t index, uint64_t begin, std::span<std::byte> out) const;
  // The first block of each data range that is damaged, as a line of text.
  std::vector<std::string> damaged_data() const;

 private:
  struct Header;
  Header read_header() const;
  void read_manifest(const Header& header);
  void read_ranges(uint64_t user_block_size);
  void verify_seal(uint64_t seal) const;
  void read_block_checksums();
  bool block_is_good(size_t index, uint64_t block, std::span<const std::byte> bytes) const;

  InputFile file_;
  FileIdentity identity_;
  nlohmann::json manifest_;
  std::vector<DataRange> data_;
  std::vector<size_t> first_block_;  // of each data range, in block_checksums_
  DataRange block_checksum_range_;
  std::vector<uint64_t> block_checksums_;
};

}  // namespace lockstep
