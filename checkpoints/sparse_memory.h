#pragma once
#include <hdf5.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

namespace lockstep::hdf5 {

// The bytes of a file, in memory, by pages: what was never written takes no room and reads as zero.
class SparseMemory {
 public:
  void read(uint64_t offset, void* out, size_t size) const;
  void write(uint64_t offset, const void* data, size_t size);
  uint64_t size() const { return size_; }
  void resize(uint64_t size) { size_ = size; }

 private:
  static constexpr uint64_t kPageBytes = 4096;
  std::map<uint64_t, std::array<std::byte, kPageBytes>> pages_;  // by number
  uint64_t size_ = 0;
};

// Makes a file access property list keep the file in `memory` (which must outlive the file): a
// virtual file driver of HDF5. The library's own driver for memory touches every byte, and needs
// as much memory again as the tensors take.
void keep_in_memory(hid_t access, SparseMemory& memory);

}  // namespace lockstep::hdf5
