#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lockstep {

// Finds workers that hold up all others, by how long each computes (StepResult::worker_seconds:
// forward and backward of its share, without waiting for anybody). A worker is slow when its median
// over a window, which is kWindow steps and kWindow_s seconds at least, is above the median of the
// others' medians by more than kShare of it, and by more than kLeast_s: medians, so that one step
// in which a disk or another program was in the way says nothing. One that was slow keeps up again
// below half of these.
class SlowWorkers {
 public:
  static constexpr int kWindow = 20;       // steps
  static constexpr double kWindow_s = 10;  // or steps of milliseconds would change it all the time
  static constexpr double kShare = 0.2;    // of the others' median
  static constexpr double kLeast_s = 0.0005;  // less is the noise of a step of milliseconds

  struct Slow {
    int rank = 0;
    double seconds = 0, others_seconds = 0;  // medians
  };

  explicit SlowWorkers(int workers) : seconds_(static_cast<size_t>(workers)) {}

  // Seconds of a step, by rank. True when a window is full and other workers are slow than before
  // it.
  bool add(std::span<const double> seconds);

  const std::vector<Slow>& slow() const { return slow_; }  // by rank, of the last full window

 private:
  std::vector<std::vector<double>> seconds_;  // (workers, steps of the window so far)
  double window_s_ = 0;                       // so far, of the slowest worker of each step
  std::vector<Slow> slow_;
};

}  // namespace lockstep
