#pragma once
#include <cstdint>
#include <string_view>

#include "core/device.h"

// What core needs of the CUDA runtime, without its headers. Defined in a build with CUDA only. All
// throw DeviceError with the runtime's words; those that free do not throw.
namespace lockstep::cuda {

void* allocate(int64_t size_bytes);         // device memory, zeroed
void* allocate_pinned(int64_t size_bytes);  // host memory that devices reach, zeroed
void release(void* memory) noexcept;
void release_pinned(void* memory) noexcept;

// Between any two of host and device; asynchronous where the host's side is pinned.
void copy(void* to, const void* from, int64_t size_bytes, Stream& stream);
void set_zero(void* memory, int64_t size_bytes, Stream& stream);  // of the device

void* create_stream();
void destroy_stream(void* stream) noexcept;
void synchronize_stream(void* stream);
void wait_event(void* stream, void* event);

void* create_event();
void destroy_event(void* event) noexcept;
void record_event(void* event, void* stream);
void synchronize_event(void* event);
bool event_passed(void* event);

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
