#pragma once
#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>

namespace lockstep {

// Says when a run must stop so that its last save ends before its time does (docs/cluster.md). What
// it goes by is measured: the longest of the last steps, evaluations and saves of this start; what
// was not measured yet is estimated, rather too long. All in seconds, on the first worker's clock.
class TimeLimit {
 public:
  using Clock = std::chrono::steady_clock;

  // Between the save's end and the limit: 5 % of the time there is, from 1 s to 60 s.
  static constexpr double kMarginShare = 0.05, kLeastMargin_s = 1, kMostMargin_s = 60;
  // Bytes a second of a save that was not measured yet, all workers together: a slow network disk.
  static constexpr double kSlowDisk = 100e6;
  // A save may take so many times the longest so far.
  static constexpr double kSaveVariation = 1.5;

  // `evaluation_steps`: how many steps' time an evaluation may take, until one was measured.
  TimeLimit(Clock::time_point now, Clock::time_point end, int64_t checkpoint_bytes,
            double evaluation_steps);

  void step_took(double seconds);
  void evaluation_took(double seconds);
  void save_took(double seconds);

  // What comes before the run can stop when it is not told to now: a stop that is asked for after a
  // step is agreed on in the next one, so that is two more steps.
  struct Ahead {
    int evaluations = 0;
    int saves = 1;  // the last one, and those that it must wait for
  };
  // Whether all that may not be done in time.
  bool must_stop(Clock::time_point now, const Ahead& ahead) const;

  // Whether even a save may not: then there is no use in starting.
  bool too_short_to_save(Clock::time_point now) const;

  double seconds_left(Clock::time_point now) const;
  double margin() const { return margin_s_; }
  double save_seconds() const;  // that a save is expected to take

 private:
  double longest_step() const;

  const Clock::time_point end_;
  const double margin_s_, estimated_save_s_, evaluation_steps_;
  std::deque<double> steps_;  // the last ones
  std::optional<double> evaluation_s_, save_s_;
};

}  // namespace lockstep
