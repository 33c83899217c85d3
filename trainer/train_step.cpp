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

  // 1. Forward and backward of this worker's virtual workers, one micro-batch after the other;
  //    gradients of the mean loss, times the loss scale, add up in fp32. The last backward of each
  //    hands the gradients to the reducer, group by group as they are complete.
  std::vector<double> loss_sums;
  for (int64_t v = 0, k = 0; v < plan.virtual_workers_each(); v++) {
    model_.zero_gradients();
    loss_sums.push_back(0);
    for (int64_t a = 1; a <= plan.accumulation(); a++, k++) {
      loss_sums.back() += model_.forward(batches_.batch(state.step, k),
                                         static_cast<float>(scaler_.scale() / tokens));
      model_.backward([&](int group) {
        if (a == plan.accumulation()) reducer_.layer_ready(group);
      });
    }
  }

  // 2. Sum over virtual workers, in the order of docs/determinism.md. Each worker gets the ranges
  //    that it updates.
  reducer_.finish();

  // 3. Undo the loss scale before anything looks at a magnitude; agree on the loss, on whether all
  //    is finite, and on whether to stop.
  const Agreement agreed = agree(loss_sums);
  result.loss = agreed.loss_sum / tokens;
  result.grad_norm = std::sqrt(agreed.sum_of_squares) / scaler_.scale();
  result.stop = agreed.stop;

  // 4. A gradient that is not finite never reaches the weights: skip, and lower the scale.
  result.skipped = !agreed.finite;
  if (result.skipped) {
    state.lost_steps = scaler_.can_lower() ? 0 : state.lost_steps + 1;
    state.skipped_steps++;
    scaler_.overflowed();
  }

  // 5. Clip, update this worker's ranges, and give every worker the new weights.
  else {
    const double factor = clip_.factor(result.grad_norm) / scaler_.scale();
    optimizer_.update(model_.gradients(), factor, result.learning_rate, state.updates,
                      model_.stream());
    gather_shards(sharding_, model_.padded_weights(), communicator_, model_.stream());
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

// Every worker fills in what it knows and zeros elsewhere, to which adding is exact; then all sum
// the same numbers in the same order.
TrainStep::Agreement TrainStep::agree(const std::vector<double>& loss_sums) {
  const auto losses = static_cast<size_t>(sharding_.virtual_workers());
  const size_t first = loss_sums.size() * static_cast<size_t>(sharding_.rank());
  std::vector<double> values(1 + losses + static_cast<size_t>(sharding_.num_slices()));
  values[0] = stop_requested_ ? 1 : 0;
  for (size_t v = 0; v < loss_sums.size(); v++) values[1 + first + v] = loss_sums[v];
  for (const Sharding::Slice& slice : sharding_.slices()) {
    values[1 + losses + static_cast<size_t>(slice.number)] = kernels::sum_of_squares(
        model_.gradients().slice(slice.range.begin, slice.range.end), model_.stream());
  }
  reducer_.check();
  communicator_.set_purpose("of losses and gradient norms");
  communicator_.all_reduce(values.data(), static_cast<int64_t>(values.size()), ReduceOp::sum);

  Agreement agreed{0, 0, true, values[0] != 0};
  for (size_t i = 1; i < values.size(); i++) {
    (i <= losses ? agreed.loss_sum : agreed.sum_of_squares) += values[i];
  }
  agreed.finite = std::isfinite(agreed.loss_sum) && std::isfinite(agreed.sum_of_squares);
  return agreed;
}

}  // namespace lockstep
