#pragma once
#include <cstdint>
#include <string>

#include "trainer/live_line.h"
#include "trainer/train_step.h"

namespace lockstep {

// What the line of progress says.
struct ProgressStatus {
  int64_t step = 0, steps = 0;
  double loss = 0, learning_rate = 0, grad_norm = 0;
  double tokens_per_second = 0;
  double peak_share = 0;    // of the machine's measured matrix-product rate; 0: not known
  double seconds_left = 0;  // 0: not known
  bool skipped = false;
};

// "step 120/600  loss 4.2174  lr 5.91e-04  grad norm 0.87  12,345 tokens/s  31 % of peak  4:10
// left"
std::string progress_text(const ProgressStatus& status);
// The same behind a bar "[#####-----]", within `width` columns: first the bar shrinks, then words
// go from the end.
std::string live_line(const ProgressStatus& status, int width);

// Shows a run's progress on stderr, or nothing. On a terminal (also through mpirun, which hands
// stderr on) one line that is drawn over; elsewhere a plain line every `log_every` steps and at the
// last.
class Progress {
 public:
  Progress(bool shown, int64_t log_every);

  void show(const ProgressStatus& status);
  // A line that stays, above the live one.
  void note(const std::string& text);

 private:
  LiveLine line_;
  int64_t log_every_;
};

}  // namespace lockstep
