#include "core/device.h"

#include <utility>

#include "core/check.h"
#include "core/cuda_runtime.h"
#include "core/profile.h"

namespace lockstep {

std::string_view name(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

Stream::Stream(Device device) : device_(device) {
  if (device == Device::cpu) return;
  if (Rehearsal* rehearsal = Rehearsal::current()) {
    log_ = &rehearsal->log();
    number_ = log_->new_stream();
    return;
  }
  if constexpr (kCudaIsBuilt) {
    native_ = cuda::create_stream();
  } else {
    throw DeviceError("this program was built without CUDA");
  }
}

Stream::Stream(Stream&& other) noexcept
    : device_(other.device_),
      native_(std::exchange(other.native_, nullptr)),
      log_(other.log_),
      number_(other.number_),
      workspaces_(std::exchange(other.workspaces_, {})),
      num_workspace_moves_(other.num_workspace_moves_) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(native_, other.native_);
  std::swap(log_, other.log_);
  std::swap(number_, other.number_);
  std::swap(workspaces_, other.workspaces_);
  std::swap(num_workspace_moves_, other.num_workspace_moves_);
  return *this;
}

Stream::~Stream() {
  if constexpr (kCudaIsBuilt) {
    if (native_ != nullptr) cuda::destroy_stream(native_);
  }
  for (Scratch& scratch : workspaces_) release(scratch);
}

void Stream::release(Scratch& scratch) {
  if (scratch.memory == nullptr) return;
  if (log_ != nullptr) {
    release_addresses(scratch.memory, scratch.size_bytes);
  } else if constexpr (kCudaIsBuilt) {
    cuda::release(scratch.memory);
  }
  scratch = {};
}

void Stream::wait(const Event& event) {
  if (log_ != nullptr) log_->note_wait(number_, event.noted_);
  if constexpr (kCudaIsBuilt) {
    if (native_ != nullptr && event.native() != nullptr) cuda::wait_event(native_, event.native());
  }
}

void Stream::synchronize() {
  if constexpr (kCudaIsBuilt) {
    if (native_ == nullptr) return;
    const ProfileScope scope(Span::Kind::wait, "wait_for_device");
    cuda::synchronize_stream(native_);
  }
}

bool Stream::capturing() const {
  if constexpr (kCudaIsBuilt) return native_ != nullptr && cuda::capturing(native_);
  return false;
}

void* Stream::workspace(int64_t size_bytes, Workspace slot) {
  CHECK(device_ == Device::cuda, "on the CPU a kernel has scratch memory of its own");
  Scratch& scratch = workspaces_[static_cast<size_t>(slot)];
  if (size_bytes > scratch.size_bytes) {
    synchronize();
    release(scratch);
    if (log_ != nullptr) {
      scratch.memory = reserve_addresses(size_bytes);
    } else if constexpr (kCudaIsBuilt) {
      scratch.memory = cuda::allocate(size_bytes);
    }
    scratch.size_bytes = size_bytes;
    num_workspace_moves_++;
  }
  return scratch.memory;
}

Event::Event(Device device) {
  if (Rehearsal::current() != nullptr) return;
  if constexpr (kCudaIsBuilt) {
    if (device == Device::cuda) native_ = cuda::create_event();
  } else {
    CHECK(device == Device::cpu);
  }
}

Event::Event(Event&& other) noexcept
    : native_(std::exchange(other.native_, nullptr)), noted_(other.noted_) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(native_, other.native_);
  std::swap(noted_, other.noted_);
  return *this;
}

Event::~Event() {
  if constexpr (kCudaIsBuilt) {
    if (native_ != nullptr) cuda::destroy_event(native_);
  }
}

void Event::record(const Stream& stream) {
  if (stream.log_ != nullptr) noted_ = stream.log_->last(stream.number_);
  if constexpr (kCudaIsBuilt) {
    if (native_ != nullptr) cuda::record_event(native_, stream.native());
  }
}

void Event::synchronize() const {
  if constexpr (kCudaIsBuilt) {
    if (native_ != nullptr) cuda::synchronize_event(native_);
  }
}

bool Event::passed() const {
  if constexpr (kCudaIsBuilt) return native_ == nullptr || cuda::event_passed(native_);
  return true;
}

Graph::Graph([[maybe_unused]] Stream& stream, [[maybe_unused]] const std::function<void()>& work) {
  if constexpr (kCudaIsBuilt) {
    CHECK(stream.native() != nullptr, "only a GPU's work is captured");
    cuda::begin_capture(stream.native());
    try {
      work();
    } catch (...) {
      cuda::abandon_capture(stream.native());
      throw;
    }
    native_ = cuda::end_capture(stream.native());
  } else {
    throw DeviceError("this program was built without CUDA");
  }
}

Graph::Graph(Graph&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}

Graph::~Graph() {
  if constexpr (kCudaIsBuilt) {
    if (native_ != nullptr) cuda::destroy_graph(native_);
  }
}

void Graph::launch([[maybe_unused]] Stream& stream) {
  if constexpr (kCudaIsBuilt) cuda::launch_graph(native_, stream.native());
}

int cuda_device_count() {
  if constexpr (kCudaIsBuilt) return cuda::device_count();
  return 0;
}

void set_cuda_device([[maybe_unused]] int index) {
  if constexpr (kCudaIsBuilt) {
    cuda::set_device(index);
  } else {
    throw DeviceError("this program was built without CUDA");
  }
}

int cuda_device() {
  if constexpr (kCudaIsBuilt) return cuda::current_device();
  throw DeviceError("this program was built without CUDA");
}

Gpu this_gpu([[maybe_unused]] int index) {
  Gpu gpu;
  if constexpr (kCudaIsBuilt) gpu = cuda::properties(index);
  return gpu;
}

int64_t free_gpu_memory() {
  if constexpr (kCudaIsBuilt) return cuda::free_memory();
  return 0;
}

CudaVersions cuda_versions() {
  CudaVersions found;
  if constexpr (kCudaIsBuilt) found = cuda::versions();
  return found;
}

}  // namespace lockstep
