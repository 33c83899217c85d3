#include "kernels/clip.h"

#include "core/profile.h"

namespace lockstep::kernels::cpu {

void decide_step(StepDecision* decision, AdamStep* step, double* seconds, const double* numbers,
                 const StepNumbers& places, const ClipInputs* inputs, Stream&) {
  const ProfileScope scope({"decide_step", static_cast<double>(places.workers * places.size()) *
                                               static_cast<double>(sizeof(double))});
  *decision = decided(places, [&](int64_t i) { return numbers[i]; });
  const double norm = std::sqrt(decision->sum_of_squares) / inputs->loss_scale;
  step->gradient_factor = static_cast<float>(clip_factor(*inputs, norm));
  step->skipped = !decision->finite;
  for (int w = 0; w < places.workers; w++) seconds[w] = numbers[places.seconds(w)];
}

}  // namespace lockstep::kernels::cpu
