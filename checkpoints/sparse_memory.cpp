#include "checkpoints/sparse_memory.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "checkpoints/hdf5.h"
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

namespace lockstep::hdf5 {

void SparseMemory::read(uint64_t offset, void* out, size_t size) const {
  auto* bytes = static_cast<std::byte*>(out);
  while (size > 0) {
    const uint64_t at = offset % kPageBytes;
    const size_t count = std::min<size_t>(size, kPageBytes - at);
    const auto page = pages_.find(offset / kPageBytes);
    if (page == pages_.end()) {
      std::memset(bytes, 0, count);
    } else {
      std::memcpy(bytes, page->second.data() + at, count);
    }
    bytes += count, offset += count, size -= count;
  }
}

void SparseMemory::write(uint64_t offset, const void* data, size_t size) {
  const auto* bytes = static_cast<const std::byte*>(data);
  size_ = std::max(size_, offset + size);
  while (size > 0) {
    const uint64_t at = offset % kPageBytes;
    const size_t count = std::min<size_t>(size, kPageBytes - at);
    std::memcpy(pages_[offset / kPageBytes].data() + at, bytes, count);
    bytes += count, offset += count, size -= count;
  }
}

namespace {

// What the property list carries, and the open file: HDF5 wants its own part first.
struct DriverInfo {
  SparseMemory* memory;
};
struct OpenFile {
  H5FD_t base;
  SparseMemory* memory;
  haddr_t end_of_allocation;
};

OpenFile* open_file(H5FD_t* file) { return reinterpret_cast<OpenFile*>(file); }
const OpenFile* open_file(const H5FD_t* file) { return reinterpret_cast<const OpenFile*>(file); }

H5FD_t* open_driver(const char*, unsigned, hid_t access, haddr_t) {
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(access));
  if (info == nullptr) return nullptr;
  auto* file = new (std::nothrow) OpenFile{};
  if (file == nullptr) return nullptr;
  file->memory = info->memory;
  return &file->base;
}

herr_t close_driver(H5FD_t* file) {
  delete open_file(file);
  return 0;
}

haddr_t end_of_allocation(const H5FD_t* file, H5FD_mem_t) {
  return open_file(file)->end_of_allocation;
}

herr_t set_end_of_allocation(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  open_file(file)->end_of_allocation = address;
  return 0;
}

haddr_t end_of_file(const H5FD_t* file, H5FD_mem_t) { return open_file(file)->memory->size(); }

herr_t read_driver(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, size_t size, void* out) {
  open_file(file)->memory->read(offset, out, size);
  return 0;
}

// No exception may pass through the library's C code.
herr_t write_driver(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, size_t size,
                    const void* data) try {
  open_file(file)->memory->write(offset, data, size);
  return 0;
} catch (const std::bad_alloc&) {
  return -1;
}

herr_t truncate_driver(H5FD_t* file, hid_t, hbool_t) {
  open_file(file)->memory->resize(open_file(file)->end_of_allocation);
  return 0;
}

H5FD_class_t describe_driver() {
  H5FD_class_t driver{};
#if H5_VERSION_GE(1, 13, 0)
  driver.version = H5FD_CLASS_VERSION;
  driver.value = static_cast<H5FD_class_value_t>(512);  // any that no registered driver has
#endif
  driver.name = "lockstep_sparse_memory";
  driver.maxaddr = HADDR_MAX;
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.fapl_size = sizeof(DriverInfo);
  driver.open = open_driver;
  driver.close = close_driver;
  driver.get_eoa = end_of_allocation;
  driver.set_eoa = set_end_of_allocation;
  driver.get_eof = end_of_file;
  driver.read = read_driver;
  driver.write = write_driver;
  driver.truncate = truncate_driver;
  const H5FD_mem_t free_lists[H5FD_MEM_NTYPES] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(free_lists), std::end(free_lists), driver.fl_map);
  return driver;
}

}  // namespace

void keep_in_memory(hid_t access, SparseMemory& memory) {
  static const H5FD_class_t driver = describe_driver();
  static const hid_t id = CHECK_HDF5(H5FDregister(&driver));  // for the life of the process
  const DriverInfo info{&memory};
  CHECK_HDF5(H5Pset_driver(access, id, &info));
}

}  // namespace lockstep::hdf5
