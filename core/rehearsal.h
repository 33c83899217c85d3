#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

// Running the host's side of a computation without its device: what it would allocate has addresses
// but no memory, and what it would enqueue is noted instead. So a plan of memory or a prediction of
// time comes from the code that trains, on a machine without a GPU and in a build without CUDA's
// runtime.
namespace lockstep {

// Who has most to do: the units of fp32 arithmetic, the tensor cores, or the links between workers.
// Any of the first two may wait for memory instead.
enum class Unit { vector, tensor, link };

// A matrix product's: out (rows, cols), each element a sum of `inner` terms.
struct ProductSize {
  int64_t rows = 0, cols = 0, inner = 0;
  constexpr double flops() const {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(cols) * static_cast<double>(inner);
  }
};

// What a kernel, a matrix product, a copy or a collective operation cannot do without.
struct Work {
  std::string_view name;  // of static life: "layernorm_backward"
  double bytes = 0;       // of device memory, read or written; of a link: that this worker sends
  double flops = 0;       // 0: few beside the bytes
  Unit unit = Unit::vector;
  ProductSize product = {};  // of a matrix product
};

// What was enqueued, in the order of the calls.
class WorkLog {
 public:
  struct Entry {
    int stream = 0;
    Work work;               // without a name: the stream only waits
    int64_t waits_for = -1;  // an earlier entry, of any stream; -1: none
  };

  int new_stream() {
    last_.push_back(-1);
    return static_cast<int>(last_.size()) - 1;
  }
  void note(int stream, const Work& work) { add({stream, work, -1}); }
  void note_wait(int stream, int64_t entry) {
    if (entry >= 0) add({stream, {}, entry});
  }
  int64_t last(int stream) const { return last_[static_cast<size_t>(stream)]; }  // -1: none
  const std::vector<Entry>& entries() const { return entries_; }
  int num_streams() const { return static_cast<int>(last_.size()); }

 private:
  void add(const Entry& entry);
  std::vector<Entry> entries_;
  std::vector<int64_t> last_;  // entry, by stream
};

// While one lives, every Buffer that its thread makes has addresses only, and every Stream and
// Event of Device::cuda notes in log(). They must not outlive it. One at a time on a thread.
class Rehearsal {
 public:
  Rehearsal();
  ~Rehearsal();
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

  WorkLog& log() { return log_; }
  static Rehearsal* current();  // of this thread; null: none

 private:
  WorkLog log_;
};

// Addresses without memory behind them, aligned to a page: touching one ends the process. Throws
// DeviceError when the system refuses.
void* reserve_addresses(int64_t size_bytes);
void release_addresses(void* addresses, int64_t size_bytes) noexcept;

}  // namespace lockstep
