#include <cmath>

#include "kernels/adam.h"
#include "kernels/cuda/device.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 4;  // parameters of a thread

// What the formula needs of a step, worked out as the CPU does.
struct Factors {
  float gradient, limit, added_decay, own_decay, step_size, beta1, beta2, correction2, epsilon;
  __device__ Factors(const AdamConstants& constants, const AdamStep& step)
      : gradient(step.gradient_factor),
        limit(constants.clip_value > 0 ? constants.clip_value : INFINITY),
        added_decay(constants.decoupled ? 0.0f : constants.weight_decay),
        own_decay(constants.decoupled ? step.learning_rate * constants.weight_decay : 0.0f),
        step_size(step.learning_rate / step.bias_correction1),
        beta1(constants.beta1),
        beta2(constants.beta2),
        correction2(step.bias_correction2),
        epsilon(constants.epsilon) {}
};

struct Parameter {
  float weight, exp_avg, exp_avg_sq;
};

__device__ Parameter updated(Parameter p, float gradient, const Factors& f) {
  float g = gradient * f.gradient;
  g = g < -f.limit ? -f.limit : g;  // NaN stays
  g = g > f.limit ? f.limit : g;
  g += f.added_decay * p.weight;
  p.exp_avg = f.beta1 * p.exp_avg + (1.0f - f.beta1) * g;
  p.exp_avg_sq = f.beta2 * p.exp_avg_sq + (1.0f - f.beta2) * g * g;
  p.weight -= f.own_decay * p.weight;
  p.weight -= f.step_size * p.exp_avg / (sqrtf(p.exp_avg_sq / f.correction2) + f.epsilon);
  return p;
}

template <class T>
struct alignas(kGroup * sizeof(T)) Group {
  T value[kGroup];
};

template <class T>
__device__ void update_group(T* weights, float* master, float* exp_avg, float* exp_avg_sq,
                             const float* gradients, const Factors& factors) {
  auto first = *reinterpret_cast<Group<float>*>(exp_avg);
  auto second = *reinterpret_cast<Group<float>*>(exp_avg_sq);
  auto weight = *reinterpret_cast<Group<float>*>(master);
  const auto gradient = *reinterpret_cast<const Group<float>*>(gradients);
  Group<T> out;
#pragma unroll
  for (int i = 0; i < kGroup; i++) {
    const Parameter p =
        updated({weight.value[i], first.value[i], second.value[i]}, gradient.value[i], factors);
    weight.value[i] = p.weight;
    first.value[i] = p.exp_avg;
    second.value[i] = p.exp_avg_sq;
    out.value[i] = rounded<T>(p.weight);
  }
  *reinterpret_cast<Group<float>*>(exp_avg) = first;
  *reinterpret_cast<Group<float>*>(exp_avg_sq) = second;
  *reinterpret_cast<Group<float>*>(master) = weight;
  *reinterpret_cast<Group<T>*>(weights) = out;
}

// Groups begin `lead` parameters before the run, where memory is aligned, so that only the first
// and the last group are parts of one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    update_kernel(T* weights, float* master, float* exp_avg, float* exp_avg_sq,
                  const float* gradients, int64_t count, int lead, bool whole,
                  const AdamConstants constants, const AdamStep* __restrict__ step) {
  if (step->skipped) return;
  const Factors factors(constants, *step);
  const int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kGroup - lead;
  if (whole && begin >= 0 && begin + kGroup <= count) {
    update_group(weights + begin, master + begin, exp_avg + begin, exp_avg_sq + begin,
                 gradients + begin, factors);
    return;
  }
#pragma unroll 1
  for (int64_t i = begin < 0 ? 0 : begin; i < begin + kGroup && i < count; i++) {
    const Parameter p = updated({master[i], exp_avg[i], exp_avg_sq[i]}, gradients[i], factors);
    exp_avg[i] = p.exp_avg;
    exp_avg_sq[i] = p.exp_avg_sq;
    master[i] = p.weight;
    weights[i] = rounded<T>(p.weight);
  }
}

// How many elements after an aligned group of them this one is.
template <class T>
int elements_past_group(const T* data) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(data) / sizeof(T) % kGroup);
}

}  // namespace

void adam_update(const Tensor& weights, const Tensor& master, const Tensor& exp_avg,
                 const Tensor& exp_avg_sq, const Tensor& gradients, const AdamConstants& constants,
                 const AdamStep* step, Stream& stream) {
  const int64_t n = master.size();
  CHECK(weights.size() == n && exp_avg.size() == n && exp_avg_sq.size() == n &&
        gradients.size() == n);
  with_float_type(weights.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int lead = elements_past_group(master.as<float>());
    const bool whole = elements_past_group(weights.as<T>()) == lead &&
                       elements_past_group(exp_avg.as<float>()) == lead &&
                       elements_past_group(exp_avg_sq.as<float>()) == lead &&
                       elements_past_group(gradients.as<float>()) == lead;
    const int64_t groups = n == 0 ? 0 : (lead + n + kGroup - 1) / kGroup;
    // Where the model computes in fp32, its weights are the master copy.
    const double published = weights.data() == master.data() ? 0 : bytes_of(weights);
    const double moved = 2 * bytes_of(master, exp_avg, exp_avg_sq) + bytes_of(gradients);
    launch({"adam_update", moved + published}, update_kernel<T>, dim3(blocks_for(groups, kThreads)),
           dim3(kThreads), 0, stream, weights.as<T>(), master.as<float>(), exp_avg.as<float>(),
           exp_avg_sq.as<float>(), gradients.as<float>(), n, lead, whole, constants, step);
  });
}

}  // namespace lockstep::kernels::cuda
