#pragma once
#include <cmath>

#include "core/device.h"
#include "kernels/adam.h"

// What a step decides once its gradients are summed, where the gradients are: whether they are
// finite, and what clipping by their global L2 norm (Pascanu et al., 2013) multiplies them by. So
// the host need not wait for a norm before it enqueues the update.
namespace lockstep::kernels {

// Where the numbers of a step stand, float64 (workers, size()). Of each worker:
//   stop        1: it was asked to stop
//   seconds     that it computed the step for, waiting for others aside; nothing is decided by it
//   loss[v]     sum of the losses of its v-th virtual worker's tokens, nats
//   squares[b,v]  sum of the squares of its v-th slice of bucket b (comm/sharding.h)
struct StepNumbers {
  int workers = 1;
  int virtual_workers_each = 1;
  int buckets = 0;

  constexpr int64_t size() const { return 2 + int64_t{virtual_workers_each} * (1 + buckets); }
  constexpr int64_t seconds(int worker) const { return worker * size() + 1; }
  constexpr int64_t loss(int worker, int v) const { return worker * size() + 2 + v; }
  constexpr int64_t squares(int worker, int bucket, int v) const {
    return loss(worker, 0) + (int64_t{bucket} + 1) * virtual_workers_each + v;
  }
};

// What the decision needs beside them.
struct ClipInputs {
  double loss_scale = 1;  // that gradients were multiplied by
  double clip_norm = 0;   // of gradients without it; 0: no clipping
};

struct StepDecision {
  double loss_sum = 0;        // over all virtual workers
  double sum_of_squares = 0;  // over all gradients, which are loss_scale times the true ones
  int32_t finite = 1;         // both are
  int32_t stop = 0;           // some worker was asked to stop
};

// Sums in the order of the virtual workers, and of the buckets and the slices in them, which no
// number of workers changes. `number(i)`: of the step's.
template <class Number>
constexpr StepDecision decided(const StepNumbers& places, const Number& number) {
  StepDecision decision;
  for (int worker = 0; worker < places.workers; worker++) {
    decision.stop |= number(worker * places.size()) != 0;
    for (int v = 0; v < places.virtual_workers_each; v++) {
      decision.loss_sum += number(places.loss(worker, v));
    }
  }
  for (int bucket = 0; bucket < places.buckets; bucket++) {
    for (int worker = 0; worker < places.workers; worker++) {
      for (int v = 0; v < places.virtual_workers_each; v++) {
        decision.sum_of_squares += number(places.squares(worker, bucket, v));
      }
    }
  }
  // x - x is NaN for what is not finite.
  decision.finite = decision.loss_sum - decision.loss_sum == 0 &&
                    decision.sum_of_squares - decision.sum_of_squares == 0;
  return decision;
}

// What gradients of this norm are multiplied by: min(1, clip_norm / grad_norm), without the loss
// scale. grad_norm: without it, too.
constexpr double clip_factor(const ClipInputs& inputs, double grad_norm) {
  const double clip = inputs.clip_norm;
  return (clip > 0 && grad_norm > clip ? clip / grad_norm : 1.0) / inputs.loss_scale;
}

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// Writes *decision, and into *step what it says of the update: gradient_factor and skipped; and
// each worker's seconds side by side, (workers). All in the memory of the device that computes;
// numbers as `places` says.
void decide_step(StepDecision* decision, AdamStep* step, double* seconds, const double* numbers,
                 const StepNumbers& places, const ClipInputs* inputs, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::decide_step) decide_step;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void decide_step(StepDecision* decision, AdamStep* step, double* seconds,
                        const double* numbers, const StepNumbers& places, const ClipInputs* inputs,
                        Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::decide_step(decision, step, seconds, numbers, places, inputs, stream);
  }
  return cpu::decide_step(decision, step, seconds, numbers, places, inputs, stream);
}

}  // namespace lockstep::kernels
