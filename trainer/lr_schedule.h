#pragma once
#include <cstdint>

#include "trainer/config.h"

namespace lockstep {

// The learning rate of each update: pure. With u updates done of n in all, w of warm-up, floor m
// (min_lr_ratio) and t = (u - w) / (n - w), the share of the way after the warm-up, the peak rate
// is multiplied by
//
//   warm-up, u < w   (u + 1) / w
//   cosine           m + (1 - m) (1 + cos(pi t)) / 2                   (Loshchilov & Hutter, 2017)
//   linear           m + (1 - m) (1 - t)
//   constant         1
//   inverse_sqrt     max(m, sqrt(max(w, 1) / (u + 1)))                      (Vaswani et al., 2017)
//   wsd              1, and in the last fifth of all updates m + (1 - m) (1 - sqrt(s)), with s the
//                    share of that fifth behind it        (Hu et al., 2024; Hägele et al., 2024)
class LrSchedule {
 public:
  static constexpr double kDecayShare = 0.2;  // of wsd

  // Throws UsageError when a value is out of range.
  LrSchedule(const ScheduleConfig& config, int64_t total_updates);
  double learning_rate(int64_t updates_done) const;

 private:
  double ratio(int64_t updates_done) const;

  ScheduleConfig config_;
  int64_t total_updates_;
};

}  // namespace lockstep
