#include "kernels/adam.h"

#include <cmath>
#include <limits>

#include "core/profile.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

template <class T>
LOCKSTEP_CLONES void update_run(T* weights, float* master, float* exp_avg, float* exp_avg_sq,
                                const float* gradients, const AdamConstants& constants,
                                const AdamStep& step, int64_t n) {
  const float limit =
      constants.clip_value > 0 ? constants.clip_value : std::numeric_limits<float>::infinity();
  const float added_decay = constants.decoupled ? 0.0f : constants.weight_decay;
  const float own_decay = constants.decoupled ? step.learning_rate * constants.weight_decay : 0.0f;
  const float step_size = step.learning_rate / step.bias_correction1;
  const float factor = step.gradient_factor, correction2 = step.bias_correction2;
  const float beta1 = constants.beta1, beta2 = constants.beta2, epsilon = constants.epsilon;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float weight = master[i];
    const float g =
        math::detail::clamp(gradients[i] * factor, -limit, limit) + added_decay * weight;
    const float first = beta1 * exp_avg[i] + (1.0f - beta1) * g;
    const float second = beta2 * exp_avg_sq[i] + (1.0f - beta2) * g * g;
    weight -= own_decay * weight;
    weight -= step_size * first / (std::sqrt(second / correction2) + epsilon);
    exp_avg[i] = first;
    exp_avg_sq[i] = second;
    master[i] = weight;
    weights[i] = from_float<T>(weight);
  }
}

}  // namespace

void adam_update(const Tensor& weights, const Tensor& master, const Tensor& exp_avg,
                 const Tensor& exp_avg_sq, const Tensor& gradients, const AdamConstants& constants,
                 const AdamStep* step, Stream&) {
  const int64_t n = master.size();
  CHECK(weights.size() == n && exp_avg.size() == n && exp_avg_sq.size() == n &&
        gradients.size() == n);
  if (step->skipped) return;
  // Where the model computes in fp32, its weights are the master copy.
  const double published = weights.data() == master.data() ? 0 : bytes_of(weights);
  const ProfileScope scope(
      {"adam_update", 2 * bytes_of(master, exp_avg, exp_avg_sq) + bytes_of(gradients) + published});
  with_float_type(weights.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(n, kElementGrain, [&](int64_t begin, int64_t end) {
      update_run(weights.as<T>() + begin, master.as<float>() + begin, exp_avg.as<float>() + begin,
                 exp_avg_sq.as<float>() + begin, gradients.as<float>() + begin, constants, *step,
                 end - begin);
    });
  });
}

}  // namespace lockstep::kernels::cpu
