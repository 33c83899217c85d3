#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/profile.h"

namespace lockstep {
namespace {

thread_local int current_index = 0;
thread_local bool inside_parallel_for = false;

// Waiting threads first spin, because a step issues thousands of short loops, then sleep.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class ThreadPool {
 public:
  explicit ThreadPool(int count) {
    for (int i = 1; i < count; i++) threads_.emplace_back([this, i] { work(i); });
  }
  ~ThreadPool() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      generation_++;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    std::lock_guard turn(turn_);
    n_ = n;
    grain_ = grain;
    body_ = &body;
    error_ = nullptr;
    next_ = 0;
    busy_ = static_cast<int>(threads_.size());
    {
      std::lock_guard lock(mutex_);
      generation_++;
    }
    wake_.notify_all();
    take_blocks();
    wait_for_the_others();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void work(int index) {
    current_index = index;
    inside_parallel_for = true;  // what a body calls runs on its own thread
    for (int64_t seen = 0;;) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen;
           spin++) {
        pause();
      }
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
      }
      seen = generation_;
      if (stopping_) return;
      take_blocks();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait_for_the_others() {
    const ProfileScope scope(Span::Kind::idle, "wait_for_threads");
    for (int spin = 0; busy_.load(std::memory_order_acquire) > 0; spin++) {
      spin < kSpins ? pause() : std::this_thread::yield();
    }
  }

  void take_blocks() {
    const bool nested = std::exchange(inside_parallel_for, true);
    for (int64_t begin; (begin = next_.fetch_add(grain_)) < n_;) {
      try {
        (*body_)(begin, std::min(n_, begin + grain_));
      } catch (...) {
        std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
        next_ = n_;
      }
    }
    inside_parallel_for = nested;
  }

  std::vector<std::thread> threads_;
  std::mutex turn_;  // one loop at a time
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stopping_{false};
  int64_t n_ = 0, grain_ = 1;
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  std::exception_ptr error_;
};

std::unique_ptr<ThreadPool>& pool() {
  static auto pool = std::make_unique<ThreadPool>(1);
  return pool;
}

}  // namespace

void set_num_threads(int count) {
  CHECK(count >= 1);
  if (count != pool()->size()) pool() = std::make_unique<ThreadPool>(count);
}

int num_threads() { return pool()->size(); }

int thread_index() { return current_index; }

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  CHECK(grain >= 1);
  if (inside_parallel_for || n <= grain || pool()->size() == 1) {
    for (int64_t begin = 0; begin < n; begin += grain) body(begin, std::min(n, begin + grain));
    return;
  }
  pool()->run(n, grain, body);
}

}  // namespace lockstep
