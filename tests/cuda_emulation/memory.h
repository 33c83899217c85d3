#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

// The memory of the emulated device, and pinned memory of the host. Each allocation lies between
// red zones and begins full of NaN, as does memory that was freed; addresses are not used again for
// long.
namespace cuda_emulation {

enum class MemoryKind { device, pinned, registered };

struct MemoryInfo {
  bool known = false;  // lies in an allocation, be it live or freed
  MemoryKind kind = MemoryKind::device;
};
MemoryInfo memory_info(const void* address);

// Null where the device's memory is full. What is not live yet becomes so by make_live().
void* allocate(size_t size, MemoryKind kind, bool live = true);
void make_live(void* address);
// Whether address is a live allocation of that kind, and the memory is now freed.
bool release(void* address, MemoryKind kind);

// Memory of the device that NCCL allocates, which only NCCL can free.
void* allocate_for_nccl(size_t size);
bool release_for_nccl(void* address);
// What is held, which counts, must not be freed. False where it is not all of one live allocation.
bool hold(const void* begin, size_t size);
void let_go(const void* begin);
void register_memory(void* address, size_t size);  // of the host, as if it were pinned

size_t device_memory_used();   // by other programs, too
size_t device_memory_total();  // LOCKSTEP_EMULATION_MEMORY_MB, or an H100's
// The first time, another program takes LOCKSTEP_EMULATION_MEMORY_TAKEN_MB of it.
void let_another_program_allocate();

// Each reports cudaErrorIllegalAddress where it returns false. `user` is who would touch the
// memory.
bool check_range(const void* begin, size_t size, const char* user);  // wholly in a live allocation
bool check_pointer(const void* address, const char* user);  // null, or in one or just behind it
// The red zones next to what address points into are as they should be.
bool check_red_zones(const void* address, const char* user);
bool check_all_red_zones();

// Allocations that are still there, a line for each kind; "" where none is.
std::string memory_leaks();
void free_all_device_memory();

// While one of these lives, the device's memory can be accessed. Without LOCKSTEP_EMULATION_GUARD=1
// it always can; with it, a host that reads or writes device memory faults.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace cuda_emulation
