#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/binary_file.h"
#include "core/tensor.h"

// The safetensors format of Hugging Face: the length of the header (8 bytes, little-endian), the
// header (JSON: name -> dtype, shape, data_offsets), then the tensors' bytes without gaps.
namespace lockstep {

// "(2, 3)"
std::string shape_to_string(const std::vector<int64_t>& shape);

// A file open for reading, its header checked against the file: every tensor lies inside, none
// overlap, nothing lies between. Throws DataError on any content that breaks this.
class SafetensorsFile {
 public:
  struct Entry {
    std::string dtype;  // "F32", "F16", "BF16", ...
    std::vector<int64_t> shape;
    uint64_t begin, end;  // bytes of the file
  };

  explicit SafetensorsFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  // The tensor as fp32 (exact), row-major. Throws DataError unless it is F32, F16 or BF16.
  std::vector<float> read(const std::string& name) const;

 private:
  void read_header();
  void check_layout(uint64_t data_begin) const;

  InputFile file_;
  std::map<std::string, Entry> entries_;
};

// All tensors of a model's folder: model.safetensors, or the files that
// model.safetensors.index.json names.
class SafetensorsFolder {
 public:
  explicit SafetensorsFolder(const std::filesystem::path& folder);  // throws DataError

  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return file_of_.contains(name); }
  const SafetensorsFile::Entry& entry(const std::string& name) const;  // which it contains
  std::vector<float> read(const std::string& name) const;              // which it contains
  // The file that holds it, for messages.
  const std::filesystem::path& path_of(const std::string& name) const;

 private:
  void add_file(const std::filesystem::path& path);
  void read_index(const std::filesystem::path& folder, const std::filesystem::path& index);

  std::vector<SafetensorsFile> files_;
  std::map<std::string, size_t> file_of_;
};

// Writes fp32 tensors: the header first, for tensors of known shape, then each tensor's values in
// that order.
class SafetensorsWriter {
 public:
  struct Item {
    std::string name;
    std::vector<int64_t> shape;
  };
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<Item>& items);
  void append(std::span<const float> values) { file_.append(std::as_bytes(values)); }
  void finish() { file_.flush_and_close(); }  // to disk

 private:
  OutputFile file_;
};

}  // namespace lockstep
