#pragma once

namespace lockstep {

// Clipping of gradients: by their global L2 norm (Pascanu et al., 2013), then each by value. 0
// turns either off.
struct ClipPolicy {
  double norm = 0;
  double value = 0;

  // What gradients of this norm are multiplied by: min(1, norm / grad_norm).
  double factor(double grad_norm) const {
    return norm > 0 && grad_norm > norm ? norm / grad_norm : 1.0;
  }
};

}  // namespace lockstep
