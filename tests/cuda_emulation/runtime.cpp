#include <cuda_runtime.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_emulation/graphs.h"
#include "cuda_emulation/memory.h"
#include "cuda_emulation/scheduler.h"

// The functions of cudart that this project calls, but for graphs (graphs.cpp) and errors
// (errors.cpp). Where CUDA leaves open whether a call waits for the device, this one does not.

namespace emu = cuda_emulation;
using emu::MemoryKind;
using emu::report;
using emu::Scheduler;

namespace {

thread_local int current_device = 0;

// The GPUs of the machine that CUDA_VISIBLE_DEVICES leaves, by its numbers and in its order; as
// CUDA does, up to the first that is none.
std::vector<int> visible_devices() {
  const auto there = static_cast<int>(emu::environment_number("LOCKSTEP_EMULATION_DEVICES", 1));
  std::vector<int> visible;
  const char* chosen = std::getenv("CUDA_VISIBLE_DEVICES");
  if (chosen == nullptr) {
    for (int i = 0; i < there; i++) visible.push_back(i);
    return visible;
  }
  std::istringstream numbers(chosen);
  for (std::string number; std::getline(numbers, number, ',');) {
    char* end = nullptr;
    const long i = std::strtol(number.c_str(), &end, 10);
    if (end == number.c_str() || i < 0 || i >= there) break;
    visible.push_back(static_cast<int>(i));
  }
  return visible;
}

int num_devices() { return static_cast<int>(visible_devices().size()); }

struct Model {
  std::string_view key;
  const char* name;
  int major, minor, multiprocessors;
};

// LOCKSTEP_EMULATION_GPU, or an H100.
const Model& model() {
  static constexpr Model kModels[] = {{"h100", "NVIDIA H100 80GB HBM3 (emulated)", 9, 0, 132},
                                      {"a100", "NVIDIA A100-SXM4-80GB (emulated)", 8, 0, 108},
                                      {"v100", "Tesla V100-SXM2-32GB (emulated)", 7, 0, 80}};
  const char* chosen = std::getenv("LOCKSTEP_EMULATION_GPU");
  for (const Model& known : kModels) {
    if (chosen != nullptr && known.key == chosen) return known;
  }
  return kModels[0];
}

// The same for every process of this host, and of no other.
cudaUUID_t uuid_of(int device) {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const size_t hash = std::hash<std::string_view>()(host);
  cudaUUID_t id{};
  std::memcpy(id.bytes, &hash, sizeof hash);
  id.bytes[15] = static_cast<char>(device);
  return id;
}

cudaError_t refuse_destroyed() {
  return report(cudaErrorInvalidResourceHandle, "a stream or event that was destroyed");
}

cudaError_t refuse_in_capture(const char* call) {
  const auto lock = Scheduler::instance().lock();
  return emu::refuse_in_capture(call);
}

void run_some() {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  scheduler.run_some(lock);
}

bool on_device(const emu::MemoryInfo& info) {
  return info.known && info.kind == MemoryKind::device;
}

// Work may still be queued that uses the memory: a program must wait before it frees.
cudaError_t free_memory(void* address, MemoryKind kind, const char* call) {
  if (address == nullptr) return cudaSuccess;
  if (const cudaError_t code = refuse_in_capture(call)) return code;
  run_some();
  if (!emu::release(address, kind)) {
    return report(cudaErrorInvalidValue, std::string(call) + " of what is no live allocation");
  }
  return emu::sticky_error();
}

cudaError_t check_direction(cudaMemcpyKind kind, bool to_device, bool from_device) {
  if (kind == cudaMemcpyDefault) return cudaSuccess;
  const bool says_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool says_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (says_to == to_device && says_from == from_device) return cudaSuccess;
  return report(cudaErrorInvalidValue, "a copy whose addresses do not fit its direction");
}

// Pageable memory of the host is read during the call, and is written when the call returns. All
// other memory is read and written when the copy runs.
cudaError_t copy(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                 cudaStream_t stream) {
  const emu::MemoryInfo target = emu::memory_info(to), source = emu::memory_info(from);
  if (const cudaError_t code = check_direction(kind, on_device(target), on_device(source))) {
    return code;
  }
  if (size == 0) return cudaSuccess;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (const cudaError_t code = cudaStreamIsCapturing(stream, &capture)) return code;
  const bool captured = capture != cudaStreamCaptureStatusNone;
  if (captured && !(target.known && source.known)) {
    return report(cudaErrorStreamCaptureUnsupported, "a copy of pageable memory in a capture");
  }
  std::shared_ptr<std::vector<char>> staged;
  if (!source.known) {
    const char* begin = static_cast<const char*>(from);
    staged = std::make_shared<std::vector<char>>(begin, begin + size);
    from = staged->data();
  }
  const cudaError_t code = emu::submit_once(stream, "copy", [=] {
    static_cast<void>(staged);
    if (target.known && !emu::check_range(to, size, "a copy's target")) return;
    if (source.known && !emu::check_range(from, size, "a copy's source")) return;
    std::memmove(to, from, size);
  });
  if (code != cudaSuccess || target.known) return code;
  return cudaStreamSynchronize(stream);
}

cudaError_t record(CUevent_st* event, cudaStream_t handle) {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr || event == nullptr || event->destroyed) return refuse_destroyed();
  event->capture = stream->capture;
  if (stream->capture != nullptr) {
    event->capture_tail = stream->capture_tail;
    return cudaSuccess;
  }
  event->recorded = scheduler.enqueue(lock, stream, "event", nullptr);
  return emu::sticky_error();
}

}  // namespace

extern "C" {

// Memory

cudaError_t cudaMalloc(void** address, size_t size) {
  *address = nullptr;
  if (const cudaError_t code = refuse_in_capture("cudaMalloc")) return code;
  if (const cudaError_t code = emu::sticky_error()) return code;
  if (size == 0) return cudaSuccess;
  *address = emu::allocate(size, MemoryKind::device);
  if (*address == nullptr) return report(cudaErrorMemoryAllocation, "cudaMalloc");
  return cudaSuccess;
}
cudaError_t cudaFree(void* address) { return free_memory(address, MemoryKind::device, "cudaFree"); }

cudaError_t cudaHostAlloc(void** address, size_t size, unsigned) {
  *address = nullptr;
  if (const cudaError_t code = refuse_in_capture("cudaHostAlloc")) return code;
  if (const cudaError_t code = emu::sticky_error()) return code;
  if (size == 0) return cudaSuccess;
  *address = emu::allocate(size, MemoryKind::pinned);
  if (*address == nullptr) return report(cudaErrorMemoryAllocation, "cudaHostAlloc");
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** address, size_t size) { return cudaHostAlloc(address, size, 0); }
cudaError_t cudaFreeHost(void* address) {
  return free_memory(address, MemoryKind::pinned, "cudaFreeHost");
}

cudaError_t cudaHostRegister(void* address, size_t size, unsigned) {
  if (emu::memory_info(address).known) {
    return report(cudaErrorHostMemoryAlreadyRegistered, "cudaHostRegister");
  }
  emu::register_memory(address, size);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* address) {
  run_some();
  if (emu::release(address, MemoryKind::registered)) return cudaSuccess;
  return report(cudaErrorHostMemoryNotRegistered, "cudaHostUnregister");
}

cudaError_t cudaMallocAsync(void** address, size_t size, cudaStream_t stream) {
  *address = nullptr;
  if (const cudaError_t code = refuse_in_capture("cudaMallocAsync")) return code;
  if (size == 0) return cudaSuccess;
  void* memory = emu::allocate(size, MemoryKind::device, false);
  if (memory == nullptr) return report(cudaErrorMemoryAllocation, "cudaMallocAsync");
  *address = memory;
  return emu::submit_once(stream, "malloc", [memory] { emu::make_live(memory); });
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  if (address == nullptr) return cudaSuccess;
  if (const cudaError_t code = refuse_in_capture("cudaFreeAsync")) return code;
  return emu::submit_once(stream, "free", [address] {
    if (!emu::release(address, MemoryKind::device)) {
      report(cudaErrorIllegalAddress, "cudaFreeAsync of what is no live allocation");
    }
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy(to, from, size, kind, stream);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  if (const cudaError_t code = copy(to, from, size, kind, nullptr)) return code;
  return cudaStreamSynchronize(nullptr);
}
cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t stream) {
  if (size == 0) return cudaSuccess;
  if (!emu::memory_info(address).known) {
    return report(cudaErrorInvalidValue, "cudaMemset outside every allocation");
  }
  return emu::submit_once(stream, "memset", [=] {
    if (emu::check_range(address, size, "cudaMemset")) std::memset(address, value, size);
  });
}
cudaError_t cudaMemset(void* address, int value, size_t size) {
  return cudaMemsetAsync(address, value, size, nullptr);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = emu::device_memory_total();
  *free_bytes = *total_bytes - emu::device_memory_used();
  emu::let_another_program_allocate();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  const emu::MemoryInfo info = emu::memory_info(address);
  *attributes = {};
  attributes->type = !info.known       ? cudaMemoryTypeUnregistered
                     : on_device(info) ? cudaMemoryTypeDevice
                                       : cudaMemoryTypeHost;
  attributes->device = info.known ? current_device : cudaInvalidDeviceId;
  attributes->devicePointer = info.known ? const_cast<void*>(address) : nullptr;
  attributes->hostPointer = on_device(info) ? nullptr : const_cast<void*>(address);
  return cudaSuccess;
}

// Streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  Scheduler& scheduler = Scheduler::instance();
  const auto lock = scheduler.lock();
  *stream = nullptr;
  if (const cudaError_t code = emu::sticky_error()) return code;
  *stream = scheduler.create_stream((flags & cudaStreamNonBlocking) == 0);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Scheduler& scheduler = Scheduler::instance();
  const auto lock = scheduler.lock();
  CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr || stream == scheduler.legacy()) return refuse_destroyed();
  scheduler.destroy(stream);
  return emu::sticky_error();
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr) return refuse_destroyed();
  if (const cudaError_t code = emu::refuse_in_capture("cudaStreamSynchronize", stream)) return code;
  const auto reached = scheduler.enqueue(lock, stream, "synchronize", nullptr);
  scheduler.run_until(lock, *reached);
  return emu::sticky_error();
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr) return refuse_destroyed();
  if (const cudaError_t code = emu::refuse_in_capture("cudaStreamQuery", stream)) return code;
  if (!stream->queue.empty()) scheduler.poll(lock, stream);
  if (const cudaError_t code = emu::sticky_error()) return code;
  return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr || event == nullptr || event->destroyed) return refuse_destroyed();
  if (stream->capture != nullptr || event->capture != nullptr) {
    return emu::capture_wait(*stream, *event);
  }
  if (event->recorded != nullptr && !event->recorded->done) {
    scheduler.enqueue(lock, stream, "wait", nullptr, event->recorded);
  }
  return emu::sticky_error();
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  return emu::submit_once(stream, "host function", [=] { function(argument); });
}

// Events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  Scheduler& scheduler = Scheduler::instance();
  const auto lock = scheduler.lock();
  *event = nullptr;
  if (const cudaError_t code = emu::sticky_error()) return code;
  *event = scheduler.create_event();
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const auto lock = Scheduler::instance().lock();
  if (event == nullptr || event->destroyed) return refuse_destroyed();
  event->destroyed = true;
  return emu::sticky_error();
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return record(event, stream);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  if (event == nullptr || event->destroyed) return refuse_destroyed();
  if (event->capture != nullptr) return report(cudaErrorCapturedEvent, "cudaEventSynchronize");
  const auto recorded = event->recorded;
  if (recorded != nullptr) scheduler.run_until(lock, *recorded);
  return emu::sticky_error();
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  if (event == nullptr || event->destroyed) return refuse_destroyed();
  if (event->capture != nullptr) return report(cudaErrorCapturedEvent, "cudaEventQuery");
  const auto recorded = event->recorded;
  if (recorded != nullptr && !recorded->done) scheduler.poll(lock, recorded->stream);
  if (const cudaError_t code = emu::sticky_error()) return code;
  return recorded == nullptr || recorded->done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const auto lock = Scheduler::instance().lock();
  if (begin->recorded == nullptr || end->recorded == nullptr) {
    return report(cudaErrorInvalidResourceHandle, "the time between events never recorded");
  }
  if (!begin->recorded->done || !end->recorded->done) return cudaErrorNotReady;
  *milliseconds =
      std::chrono::duration<float, std::milli>(end->recorded->when - begin->recorded->when).count();
  return cudaSuccess;
}

// The device

cudaError_t cudaDeviceSynchronize() {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  if (const cudaError_t code = emu::refuse_in_capture("cudaDeviceSynchronize")) return code;
  scheduler.run_all(lock);
  lock.unlock();
  emu::check_all_red_zones();
  return emu::sticky_error();
}

// Frees the device's memory and begins again with the seed of the environment. Streams and events
// stay, unlike on a real device.
cudaError_t cudaDeviceReset() {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  emu::end_all_captures();
  scheduler.run_all(lock);
  emu::free_all_device_memory();
  scheduler.reset(lock);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = num_devices();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= num_devices()) return report(cudaErrorInvalidDevice, "cudaSetDevice");
  current_device = index;
  return emu::sticky_error();
}
cudaError_t cudaGetDevice(int* index) {
  *index = current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (index < 0 || index >= num_devices()) {
    return report(cudaErrorInvalidDevice, "cudaGetDeviceProperties");
  }
  *properties = {};
  std::strcpy(properties->name, model().name);
  properties->uuid = uuid_of(visible_devices()[static_cast<size_t>(index)]);
  properties->totalGlobalMem = emu::device_memory_total();
  properties->major = model().major;
  properties->minor = model().minor;
  properties->multiProcessorCount = model().multiprocessors;
  properties->warpSize = emu::kWarpSize;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  properties->sharedMemPerMultiprocessor = 228 * 1024;
  properties->regsPerBlock = 65536;
  properties->l2CacheSize = 50 * 1024 * 1024;
  properties->concurrentKernels = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  cudaDeviceProp properties;
  if (const cudaError_t code = cudaGetDeviceProperties(&properties, index)) return code;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return cudaSuccess;
    default:
      return report(cudaErrorNotSupported, "this attribute is not emulated");
  }
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = static_cast<int>(emu::environment_number("LOCKSTEP_EMULATION_DRIVER", CUDART_VERSION));
  return cudaSuccess;
}

}  // extern "C"
