#include "trainer/loss_scaler.h"

#include <algorithm>

namespace lockstep {

void LossScaler::succeeded() {
  if (!dynamic_ || ++clean_steps_ < kGrowAfter) return;
  scale_ *= 2;
  clean_steps_ = 0;
}

void LossScaler::overflowed() {
  if (!dynamic_) return;
  scale_ = std::max(kFloor, scale_ / 2);
  clean_steps_ = 0;
}

void LossScaler::restore(double scale, int64_t clean_steps) {
  scale_ = scale;
  clean_steps_ = clean_steps;
}

}  // namespace lockstep
