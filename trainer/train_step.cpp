#include "trainer/train_step.h"

#include <cmath>

#include "kernels/reduce.h"

namespace lockstep {

StepResult TrainStep::run(TrainerState& state) {
  const BatchPlan& plan = batches_.plan();
  const auto tokens = static_cast<double>(plan.step_tokens());
  StepResult result{.step = state.step + 1,
                    .learning_rate = schedule_.learning_rate(state.updates),
                    .loss_scale = scaler_.scale()};

  // 1. Forward and backward, one micro-batch after the other; gradients of the mean loss, times the
  //    loss scale, add up in fp32. The last backward hands each group's gradients to the reducer as
  //    soon as they are complete.
  model_.zero_gradients();
  double loss_sum = 0;
  for (int64_t k = 0; k < plan.accumulation(); k++) {
    loss_sum +=
        model_.forward(batches_.batch(state.step, k), static_cast<float>(scaler_.scale() / tokens));
    const bool last = k + 1 == plan.accumulation();
    model_.backward([&](int group) {
      if (last) reducer_.layer_ready(group);
    });
  }

  // 2. Sum over workers. Each worker gets the slice that it updates.
  const GradientSlice gradients = reducer_.finish();

  // 3. Undo the loss scale before anything looks at a magnitude; agree on the loss, on whether all
  // is
  //    finite, and on whether to stop.
  Stream stream;
  result.grad_norm =
      std::sqrt(kernels::sum_of_squares(gradients.gradients, stream)) / scaler_.scale();
  const Agreement agreed = agree(loss_sum, result.grad_norm);
  result.loss = agreed.loss_sum / tokens;
  result.stop = agreed.stop;

  // 4. A gradient that is not finite never reaches the weights: skip, and lower the scale.
  result.skipped = !agreed.finite;
  if (result.skipped) {
    state.lost_steps = scaler_.can_lower() ? 0 : state.lost_steps + 1;
    state.skipped_steps++;
    scaler_.overflowed();
  }

  // 5. Clip, and update the slice.
  else {
    const double factor = clip_.factor(result.grad_norm) / scaler_.scale();
    optimizer_.update(gradients, factor, result.learning_rate, state.updates);
    state.updates++;
    state.lost_steps = 0;
    scaler_.succeeded();
  }

  // 6. What the next step starts from.
  state.step++;
  state.tokens += plan.step_tokens();
  state.loss_scale = scaler_.scale();
  state.clean_steps = scaler_.clean_steps();
  return result;
}

TrainStep::Agreement TrainStep::agree(double loss_sum, double grad_norm) {
  const bool finite = std::isfinite(loss_sum) && std::isfinite(grad_norm);
  double values[] = {loss_sum, finite ? 0.0 : 1.0, stop_requested_ ? 1.0 : 0.0};
  communicator_.all_reduce(values, 3, ReduceOp::sum);
  return {values[0], values[1] == 0, values[2] != 0};
}

}  // namespace lockstep
