#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace lockstep::launch {

// One line on stderr that is drawn over and over, where stderr is a terminal:
//   encoding  [##########----------]  50 %  120.3 MiB  8.1 MiB/s  0:15 left
// Elsewhere a plain line as each phase begins.
class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar() { clear(); }
  // Bytes done and in all, of a phase. Cheap to call often.
  void show(std::string_view phase, int64_t done_bytes, int64_t total_bytes);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool terminal_;
  bool drawn_ = false;
  std::string phase_;
  Clock::time_point phase_start_, last_;
};

}  // namespace lockstep::launch
