#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace lockstep {

// Bytes of text under way that keep so many threads busy.
inline int64_t pipeline_bytes(int threads) { return (int64_t{threads} + 2) << 20; }

// produce -> transform -> consume, for a stream of items that does not fit into memory. Worker
// threads take turns to produce, one at a time and in order; they transform at the same time; the
// calling thread consumes in the order of production. So results do not depend on the number of
// threads. What is under way is bounded: no more is produced while items of `max_weight` in all
// wait to be consumed. The first exception, in the order of items, stops all and is rethrown here.
template <class In, class Out>
class OrderedPipeline {
 public:
  std::function<std::optional<In>()> produce;  // none: the end
  std::function<int64_t(const In&)> weight;
  std::function<Out(In)> transform;
  std::function<void(Out)> consume;

  void run(int threads, int64_t max_weight) {
    max_weight_ = max_weight;
    std::vector<std::thread> workers;
    try {
      for (int i = 0; i < threads; i++) workers.emplace_back([this] { work(); });
      consume_all();
    } catch (...) {
      stop(workers);
      throw;
    }
    stop(workers);
  }

 private:
  struct Result {
    std::optional<Out> value;
    std::exception_ptr error;
    int64_t weight = 0;
  };

  void work() {
    for (;;) {
      Result result;
      int64_t index = 0;
      std::optional<In> item = take(index, result);
      if (!item && !result.error) return;
      if (item) {
        try {
          result.value.emplace(transform(std::move(*item)));
        } catch (...) {
          result.error = std::current_exception();
        }
      }
      std::lock_guard lock(mutex_);
      results_.emplace(index, std::move(result));
      changed_.notify_all();
    }
  }

  // The next item and its place in the order; none at the end, or with an error.
  std::optional<In> take(int64_t& index, Result& result) {
    std::lock_guard turn(turn_);
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || weight_ < max_weight_; });
      if (stopping_ || ended_) return {};
      index = produced_;
    }
    std::optional<In> item;
    try {
      item = produce();
      if (item) result.weight = weight(*item);
    } catch (...) {
      item.reset();
      result.error = std::current_exception();
    }
    std::lock_guard lock(mutex_);
    if (!item) ended_ = true;
    if (item || result.error) produced_++;
    weight_ += result.weight;
    if (!item) changed_.notify_all();
    return item;
  }

  void consume_all() {
    for (int64_t index = 0;; index++) {
      Result result;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock,
                      [&] { return results_.count(index) != 0 || (ended_ && index == produced_); });
        if (results_.count(index) == 0) return;
        result = std::move(results_.extract(index).mapped());
      }
      if (result.error) std::rethrow_exception(result.error);
      consume(std::move(*result.value));
      std::lock_guard lock(mutex_);
      weight_ -= result.weight;
      changed_.notify_all();
    }
  }

  void stop(std::vector<std::thread>& workers) {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  std::mutex turn_;  // of producing
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, Result> results_;  // transformed, not consumed yet
  int64_t produced_ = 0, weight_ = 0, max_weight_ = 0;
  bool ended_ = false, stopping_ = false;
};

}  // namespace lockstep
