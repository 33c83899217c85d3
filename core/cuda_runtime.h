#pragma once
#include <cstdint>
#include <string_view>

#include "core/device.h"

// What core needs of the CUDA runtime, without its headers. Defined in a build with CUDA only. All
// throw DeviceError with the runtime's words; those that free do not throw.
namespace lockstep::cuda {

// Zeroed once they return. Throw OutOfGpuMemory when there is not enough.
void* allocate(int64_t size_bytes);            // device memory
void* allocate_pinned(int64_t size_bytes);     // host memory that devices reach
void clear(void* memory, int64_t size_bytes);  // to zero, for work of any stream from here on
// Nothing that is enqueued may use it any more: they need not wait.
void release(void* memory) noexcept;
void release_pinned(void* memory) noexcept;
int64_t free_memory();  // of the device, bytes

// Both are enqueued in the stream and return at once; the memory must live, and the host must leave
// its side alone, until they have run. `copy` is between any two of host and device that do not
// overlap. Host memory that is not pinned (allocate_pinned) it reads before it returns, and writes
// before it returns: then it has waited for all that the stream had to do.
void copy(void* to, const void* from, int64_t size_bytes, Stream& stream);
// Device memory to bytes of 0.
void set_zero(void* memory, int64_t size_bytes, Stream& stream);

void* create_stream();
void destroy_stream(void* stream) noexcept;
void synchronize_stream(void* stream);
void wait_event(void* stream, void* event);

void* create_event();
void destroy_event(void* event) noexcept;
void record_event(void* event, void* stream);
void synchronize_event(void* event);
bool event_passed(void* event);

// Events that know when the device came to them. They are destroyed and waited for like others.
void* create_timer();
void mark_time(void* timer, void* stream) noexcept;  // record_event; a failure shows in elapsed_ns
int64_t elapsed_ns(void* begin, void* end);          // between two that the device has passed

bool capturing(void* stream);
// What this thread enqueues in the stream becomes part of a graph, until end_capture, which returns
// a cudaGraphExec_t, or abandon_capture.
void begin_capture(void* stream);
void* end_capture(void* stream);
void abandon_capture(void* stream) noexcept;
void launch_graph(void* graph, void* stream);
void destroy_graph(void* graph) noexcept;  // also one that is still running

int device_count();  // 0 where there is no driver
void set_device(int index);
int current_device();
Gpu properties(int index);
CudaVersions versions();  // driver 0 where there is none

// Throws DeviceError when `code`, a cudaError_t, is not success.
void check(int code, std::string_view operation);

}  // namespace lockstep::cuda
