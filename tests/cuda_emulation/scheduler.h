#pragma once
#include <cuda_runtime.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_emulation/errors.h"
#include "cuda_emulation/fibers.h"

// Streams and events, and the order in which queued work runs. Nothing need run when it is
// enqueued. A synchronisation runs what it waits for and, at random, some of what it does not, in
// an interleaving of all streams that the seed decides and that respects nothing but the order
// within a stream and events. A program whose result depends on more than that fails for some seed.
//
// The environment: LOCKSTEP_EMULATION_SEED (read when the process starts and by cudaDeviceReset),
// _ORDER = forward, reverse or random (of threads; else the seed decides), _MEMORY_MB, _IDLE_MS,
// _GUARD = 1 (see memory.h), _DEVICES (how many the process sees), _LEAKS = fail (what was not
// released at exit turns the status to 1), _NCCL_FAIL (nccl.cpp).
namespace cuda_emulation {

// A piece of queued work: called until it returns true; false says that it waits for something
// outside this process, and that other work may run.
using Step = std::function<bool()>;
// Makes the step when it is enqueued. A captured graph makes one for each launch.
using MakeStep = std::function<Step()>;

cudaError_t submit(cudaStream_t stream, const char* name, MakeStep make);

template <class F>
cudaError_t submit_once(cudaStream_t stream, const char* name, F work) {
  return submit(stream, name, [work = std::make_shared<F>(std::move(work))] {
    return Step([work] {
      (*work)();
      return true;
    });
  });
}

uint64_t random_number();  // of the scheduler's generator
int64_t environment_number(const char* name, int64_t otherwise);

// What the program has not destroyed or freed, a line each; "" where all was.
std::string leaks();
// Counts handles of the libraries (by +1, -1) for leaks().
void count_handle(const char* kind, int change);

struct Completion {
  bool done = false;
  CUstream_st* stream = nullptr;
  std::chrono::steady_clock::time_point when;
};

}  // namespace cuda_emulation

namespace cuda_emulation {
struct Capture;  // graphs.cpp
}

struct CUstream_st {
  struct Queued {
    uint64_t number;  // over all streams
    const char* name;
    cuda_emulation::Step step;                          // may be empty
    std::shared_ptr<cuda_emulation::Completion> after;  // may be null
    std::shared_ptr<cuda_emulation::Completion> completion;
  };
  bool blocking = true;  // waits for the legacy stream, and the other way round
  bool destroyed = false;
  double weight = 1;  // how likely it is to be chosen
  std::deque<Queued> queue;
  std::shared_ptr<cuda_emulation::Capture> capture;  // null where there is none
  std::vector<int> capture_tail;                     // nodes that the next captured one comes after
};

struct CUevent_st {
  bool destroyed = false;
  std::shared_ptr<cuda_emulation::Completion> recorded;
  std::shared_ptr<cuda_emulation::Capture> capture;  // null where there is none
  std::vector<int> capture_tail;
};

namespace cuda_emulation {

class Scheduler {
 public:
  static Scheduler& instance();

  using Lock = std::unique_lock<std::mutex>;
  Lock lock() { return Lock(mutex_); }

  // All of these are called with the lock held.
  CUstream_st* find(cudaStream_t stream);  // legacy() for null; null where it was destroyed
  CUstream_st* legacy() { return legacy_; }
  CUstream_st* create_stream(bool blocking);
  CUevent_st* create_event();
  void destroy(CUstream_st* stream);  // what is enqueued still runs
  const std::vector<CUstream_st*>& active() const { return active_; }  // legacy() among them
  std::string leaks() const;

  std::shared_ptr<Completion> enqueue(Lock& lock, CUstream_st* stream, const char* name, Step step,
                                      std::shared_ptr<Completion> after = nullptr);
  void run_until(Lock& lock, const Completion& completion);
  void run_all(Lock& lock);
  void run_some(Lock& lock);                                      // at random, perhaps nothing
  bool run_one(Lock& lock, const CUstream_st* wanted = nullptr);  // false: nothing can run
  // For who only asks: a step, unless another thread is at one, which it does not wait for.
  void poll(Lock& lock, const CUstream_st* wanted) {
    if (!step_runs_) run_one(lock, wanted);
  }

  size_t choose(const std::vector<CUstream_st*>& streams);
  ThreadOrder thread_order();  // of the next kernel
  uint64_t random() { return random_(); }
  void reset(Lock& lock);  // all work done; a new seed from the environment
  void stop_idle_thread(Lock& lock);

 private:
  struct Generator {  // splitmix64
    uint64_t state = 0;
    uint64_t operator()();
  };
  Scheduler();
  void seed_from_environment();
  bool is_ready(const CUstream_st& stream) const;
  CUstream_st* first_needed_by(const CUstream_st* stream);
  void start_idle_thread();
  void run_while_idle();

  std::mutex mutex_;
  std::condition_variable step_ended_;
  bool step_runs_ = false;
  uint64_t num_enqueued_ = 0, num_pending_ = 0;
  Generator random_;
  double eagerness_ = 0;  // how likely work is to run when something is enqueued
  bool lazy_ = false;     // mostly runs only what a synchronisation waits for
  bool fixed_order_ = false;
  ThreadOrder order_ = ThreadOrder::forward;
  CUstream_st* legacy_ = nullptr;
  // Kept for ever, so that handles that were destroyed can be told.
  std::vector<std::unique_ptr<CUstream_st>> streams_;
  std::vector<std::unique_ptr<CUevent_st>> events_;
  std::vector<CUstream_st*> active_;  // not destroyed, or with work left
  std::chrono::steady_clock::time_point touched_;
  std::chrono::milliseconds idle_{};
  bool idle_thread_started_ = false, idle_thread_stops_ = false;
};

}  // namespace cuda_emulation
