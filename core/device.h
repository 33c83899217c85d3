#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "core/rehearsal.h"

// Devices, and the queues of work on them. In a build without CUDA (LOCKSTEP_CUDA=0) only the CPU
// is there, and asking for anything else throws DeviceError.
namespace lockstep {

enum class Device { cpu, cuda };
std::string_view name(Device device);  // "cpu", "cuda"

inline constexpr bool kCudaIsBuilt = LOCKSTEP_CUDA;

class Event;

// Scratch memory of a stream. A kernel that calls another has its memory beside the other's.
enum class Workspace { kernel, product, classifier };

// An ordered queue of work on a device. What is enqueued returns at once and runs later, after all
// that was enqueued before it; buffers that it uses must live, and must not be read or written by
// the host or another stream, until a synchronize() or an Event says that it is done. On the CPU
// there is nothing to wait for, because each piece has run when its call returns. Movable only.
class Stream {
 public:
  // CUDA: of the current device, and it does not wait for the default stream.
  explicit Stream(Device device = Device::cpu);
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  ~Stream();  // waits for what was enqueued

  Device device() const { return device_; }
  void* native() const { return native_; }  // a cudaStream_t; null on the CPU

  // Who enqueues work on a GPU says so here first. True: this is a Rehearsal, where that is all.
  bool note(const Work& work) {
    if (log_ != nullptr) log_->note(number_, work);
    return log_ != nullptr;
  }

  // What is enqueued from here on runs after what was enqueued before event.record().
  void wait(const Event& event);
  // Returns when all that was enqueued has run. Throws DeviceError when some of it failed.
  void synchronize();
  bool capturing() const;  // whether what is enqueued becomes part of a Graph instead

  // Device memory for one kernel call: at least so many bytes, aligned to 256, valid for work that
  // is enqueued here before the next call of this function for the same slot. It grows and is kept.
  void* workspace(int64_t size_bytes, Workspace slot = Workspace::kernel);
  int64_t workspace_bytes(Workspace slot) const {  // that it has now
    return workspaces_[static_cast<size_t>(slot)].size_bytes;
  }
  // How often some workspace has moved: a Graph that was captured before points to freed memory.
  int num_workspace_moves() const { return num_workspace_moves_; }

 private:
  friend class Event;
  struct Scratch {
    void* memory = nullptr;
    int64_t size_bytes = 0;
  };
  void release(Scratch& scratch);

  Device device_;
  void* native_ = nullptr;
  WorkLog* log_ = nullptr;               // of the rehearsal that this is part of
  int number_ = 0;                       // in the log
  std::array<Scratch, 3> workspaces_{};  // by Workspace
  int num_workspace_moves_ = 0;
};

// A point in a stream. Movable only.
class Event {
 public:
  explicit Event(Device device = Device::cpu);
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  // Marks what is enqueued in the stream up to here, instead of what was marked before.
  void record(const Stream& stream);
  // Returns when what was marked has run; at once when nothing was.
  void synchronize() const;
  bool passed() const;                      // whether synchronize() would return at once
  void* native() const { return native_; }  // a cudaEvent_t; null on the CPU

 private:
  friend class Stream;
  void* native_ = nullptr;
  int64_t noted_ = -1;  // in a rehearsal: the last entry before the mark
};

// Work that was enqueued once, to be enqueued again as a whole (a CUDA graph): the host does
// little, and the device goes from one kernel to the next faster. GPUs only. Movable only.
class Graph {
 public:
  // Captures what `work` enqueues in the stream, and in other streams that wait for its events and
  // for which it then waits. None of it runs yet. It keeps its arguments: addresses, not what is
  // there. `work` must not wait for the device or make workspaces grow. Throws what `work` throws,
  // or DeviceError.
  Graph(Stream& stream, const std::function<void()>& work);
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();

  void launch(Stream& stream);

 private:
  void* native_ = nullptr;  // a cudaGraphExec_t
};

// GPUs that this process can use; 0 without CUDA, driver or GPU.
int cuda_device_count();
// Makes one of them the current device of the calling thread.
void set_cuda_device(int index);
int cuda_device();  // the calling thread's

struct Gpu {
  std::string id;  // the same in every process that sees it, and no other's: "GPU-5a3f..."
  std::string name;
  int architecture = 0;  // 10 * major + minor of its compute capability
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
};
Gpu this_gpu(int index);
int64_t free_gpu_memory();  // bytes, of the calling thread's; other programs may take them

// Of a library: what this program was compiled against, and what is loaded; "" when unknown.
struct LibraryVersion {
  std::string built, loaded;
};

// Versions as CUDA counts them: 1000 * major + 10 * minor.
struct CudaVersions {
  int driver = 0;         // the newest runtime that the driver serves; 0: no driver is loaded
  int runtime_built = 0;  // that this program was compiled against; 0: a build without CUDA
  int runtime = 0;        // that is loaded
};
CudaVersions cuda_versions();

}  // namespace lockstep
