#pragma once
#include <hdf5.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "checkpoints/sparse_memory.h"
#include "core/tensor.h"

// Owners and helpers for HDF5's C API. The library only ever works in memory (HdfImage); what
// reaches the disk is written by us, so a full disk or a missing permission is an errno, and not a
// library in an undefined state. No file on disk is opened or locked through it.
namespace lockstep::hdf5 {

// While one lives, its thread alone is inside HDF5 (the builds on clusters are often not safe for
// threads), and the library prints no error stack.
class Session {
 public:
  Session();

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

// Throws std::logic_error with the expression and HDF5's reason when a call fails: what we ask of
// the library happens in memory, so a failure is a mistake of ours (or memory has run out).
[[noreturn]] void call_failed(const char* expression, const char* file, int line);

template <class T>
T checked(T result, const char* expression, const char* file, int line) {
  if (result < 0) call_failed(expression, file, line);
  return result;
}

#define CHECK_HDF5(call) ::lockstep::hdf5::checked((call), #call, __FILE__, __LINE__)

// Owns an identifier; `closer` is the H5?close that fits it.
class Handle {
 public:
  Handle(hid_t id, herr_t (*closer)(hid_t)) : id_(id), close_(closer) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }  // NOLINT: the C API takes it everywhere
  void close() { CHECK_HDF5(close_(std::exchange(id_, -1))); }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

Handle create_group(hid_t parent, const std::string& path);  // with the groups above it
Handle open_group(hid_t parent, const std::string& path);
Handle create_dataspace(const Shape& shape);  // a scalar for rank 0

// One attribute for each scalar of a JSON object: numbers as int64, uint64 or float64, booleans as
// h5py's, text as UTF-8. Objects inside are flattened ("rope_scaling.factor"), nulls left out,
// arrays written as their JSON text.
void write_attributes(hid_t object, const nlohmann::json& values, const std::string& prefix = "");

// Of the numbers of a dataset; little-endian.
enum class NumberType { float32, uint8, uint32, uint64 };
constexpr uint64_t size_bytes(NumberType type) {
  return type == NumberType::uint8 ? 1 : type == NumberType::uint64 ? 8 : 4;
}

// An HDF5 file that lives in memory, with holes where the tensors will stand.
class HdfImage {
 public:
  // The file starts with `user_block_bytes` (a power of two, at least 512) that HDF5 leaves alone.
  explicit HdfImage(uint64_t user_block_bytes);
  HdfImage(HdfImage&&) = delete;
  ~HdfImage();

  hid_t file() const { return *file_; }

  // A contiguous dataset with its place reserved and nothing written. Returns the place of the
  // first byte in the file, 0 where the dataset is empty.
  uint64_t reserve(const std::string& path, NumberType type, const Shape& shape);
  // A UTF-8 text (not empty) as a scalar dataset.
  uint64_t write_text(const std::string& path, const std::string& text);

  // Ends the HDF5 part and returns the size of the file in bytes. Then bytes() may be read and
  // written.
  uint64_t finish();
  SparseMemory& bytes() { return bytes_; }
  const SparseMemory& bytes() const { return bytes_; }

 private:
  uint64_t reserve(const std::string& path, hid_t type, hid_t space);

  std::optional<Session> session_;  // until finish()
  SparseMemory bytes_;
  std::unique_ptr<Handle> file_;
};

}  // namespace lockstep::hdf5
