#include "core/cuda_runtime.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/check.h"
#include "core/profile.h"

namespace lockstep::cuda {

void check(int code, std::string_view operation) {
  if (code == cudaSuccess) return;
  const auto error = static_cast<cudaError_t>(code);
  throw DeviceError("CUDA failed in {}: {}", operation, cudaGetErrorString(error));
}

namespace {

struct DeviceMemory {
  size_t free = 0, total = 0;
};

DeviceMemory device_memory() {
  DeviceMemory memory;
  check(cudaMemGetInfo(&memory.free, &memory.total), "asking for free memory");
  return memory;
}

void check_memory(cudaError_t code, std::string_view kind, int64_t size_bytes) {
  if (code != cudaErrorMemoryAllocation) return check(code, "allocating memory");
  static_cast<void>(cudaGetLastError());  // it is no reason to fail later calls
  const DeviceMemory memory = device_memory();
  throw OutOfGpuMemory(
      "out of {} memory: {:.1f} MiB were refused; {:.1f} of the device's {:.1f} MiB are free", kind,
      static_cast<double>(size_bytes) / 1048576, static_cast<double>(memory.free) / 1048576,
      static_cast<double>(memory.total) / 1048576);
}

// As nvidia-smi writes it: "GPU-", and 16 bytes in groups of 4, 2, 2, 2 and 6.
std::string text_of(const cudaUUID_t& id) {
  std::string text = "GPU";
  for (size_t i = 0; i < sizeof id.bytes; i++) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(id.bytes[i]));
  }
  return text;
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

void* allocate(int64_t size_bytes) {
  void* memory = nullptr;
  check_memory(cudaMalloc(&memory, static_cast<size_t>(size_bytes)), "device", size_bytes);
  clear(memory, size_bytes);
  return memory;
}

void clear(void* memory, int64_t size_bytes) {
  check(cudaMemset(memory, 0, static_cast<size_t>(size_bytes)), "clearing memory");
  // Streams that do not wait for the default stream may use it at once.
  check(cudaStreamSynchronize(nullptr), "clearing memory");
}

void* allocate_pinned(int64_t size_bytes) {
  void* memory = nullptr;
  check_memory(cudaHostAlloc(&memory, static_cast<size_t>(size_bytes), cudaHostAllocDefault),
               "pinned host", size_bytes);
  std::fill_n(static_cast<char*>(memory), size_bytes, '\0');
  return memory;
}

void release(void* memory) noexcept { cudaFree(memory); }
void release_pinned(void* memory) noexcept { cudaFreeHost(memory); }
int64_t free_memory() { return static_cast<int64_t>(device_memory().free); }

void copy(void* to, const void* from, int64_t size_bytes, Stream& stream) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(size_bytes), cudaMemcpyDefault,
                        stream_of(stream.native())),
        "copying");
}

void set_zero(void* memory, int64_t size_bytes, Stream& stream) {
  const Work work{"set_zero", static_cast<double>(size_bytes)};
  if (stream.note(work)) return;
  const ProfileScope scope(work, stream);
  check(cudaMemsetAsync(memory, 0, static_cast<size_t>(size_bytes), stream_of(stream.native())),
        "clearing memory");
}

void* create_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  return stream;
}

void destroy_stream(void* stream) noexcept {
  cudaStreamSynchronize(stream_of(stream));
  cudaStreamDestroy(stream_of(stream));
}

void synchronize_stream(void* stream) {
  check(cudaStreamSynchronize(stream_of(stream)), "waiting for a stream");
}

void wait_event(void* stream, void* event) {
  check(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "waiting for an event");
}

void* create_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  return event;
}

void destroy_event(void* event) noexcept { cudaEventDestroy(event_of(event)); }

void record_event(void* event, void* stream) {
  check(cudaEventRecord(event_of(event), stream_of(stream)), "recording an event");
}

void synchronize_event(void* event) {
  check(cudaEventSynchronize(event_of(event)), "waiting for an event");
}

bool event_passed(void* event) {
  const cudaError_t code = cudaEventQuery(event_of(event));
  if (code == cudaErrorNotReady) return false;
  check(code, "asking for an event");
  return true;
}

void* create_timer() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "creating a timer");
  return event;
}

void mark_time(void* timer, void* stream) noexcept {
  static_cast<void>(cudaEventRecord(event_of(timer), stream_of(stream)));
}

int64_t elapsed_ns(void* begin, void* end) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, event_of(begin), event_of(end)), "reading a timer");
  return static_cast<int64_t>(1e6 * static_cast<double>(milliseconds));
}

bool capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream_of(stream), &status), "asking for a capture");
  return status != cudaStreamCaptureStatusNone;
}

// Other threads may go on calling the runtime: the one that watches NCCL does.
void begin_capture(void* stream) {
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal),
        "beginning a graph");
}

void* end_capture(void* stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_of(stream), &graph),
        "capturing a graph (--no-cuda-graph does without)");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t code = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(code, "making a graph ready (--no-cuda-graph does without)");
  return executable;
}

void abandon_capture(void* stream) noexcept {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream_of(stream), &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  static_cast<void>(cudaGetLastError());  // that the capture was spoilt is no news
}

void launch_graph(void* graph, void* stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)),
        "starting a graph");
}

void destroy_graph(void* graph) noexcept {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  static_cast<void>(cudaGetLastError());
  return 0;
}

void set_device(int index) { check(cudaSetDevice(index), "choosing a GPU"); }

int current_device() {
  int index = 0;
  check(cudaGetDevice(&index), "asking for the current GPU");
  return index;
}

Gpu properties(int index) {
  cudaDeviceProp found{};
  check(cudaGetDeviceProperties(&found, index), "asking for a GPU's properties");
  return {.id = text_of(found.uuid),
          .name = found.name,
          .architecture = 10 * found.major + found.minor,
          .multiprocessors = found.multiProcessorCount,
          .memory_bytes = static_cast<int64_t>(found.totalGlobalMem)};
}

CudaVersions versions() {
  CudaVersions found;
  found.runtime_built = CUDART_VERSION;
  check(cudaRuntimeGetVersion(&found.runtime), "asking for the runtime's version");
  if (cudaDriverGetVersion(&found.driver) == cudaSuccess) return found;
  static_cast<void>(cudaGetLastError());  // a driver that cannot even say its version is none
  found.driver = 0;
  return found;
}

}  // namespace lockstep::cuda
