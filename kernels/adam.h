#pragma once
#include "core/device.h"
#include "core/tensor.h"

// One step of Adam (Kingma & Ba, 2015) or AdamW (Loshchilov & Hutter, 2019) on a run of parameters,
// with the last touches to the gradient, and the cast to compute precision, in one pass.
//
//   g  = clamp(gradient * gradient_factor, -clip_value, clip_value)
//   g += weight_decay * master                                     Adam only (decoupled = false)
//   exp_avg    = beta1 * exp_avg    + (1 - beta1) * g
//   exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2
//   master -= learning_rate * weight_decay * master                AdamW only (decoupled = true)
//   master -= learning_rate * (exp_avg / bias_correction1)
//             / (sqrt(exp_avg_sq / bias_correction2) + epsilon)
//   weights = master, rounded
namespace lockstep::kernels {

struct AdamConstants {
  float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f;
  float weight_decay = 0;  // of this run of parameters
  bool decoupled = true;   // AdamW
  float clip_value = 0;    // 0: none
};

// What is another at each step, in the memory of the device that updates.
struct AdamStep {
  float learning_rate = 0;
  float bias_correction1 = 1;  // 1 - beta1^updates
  float bias_correction2 = 1;  // 1 - beta2^updates
  float gradient_factor = 1;   // undoes the loss scale and clips by norm
  int32_t skipped = 0;         // 1: there is no update, and nothing is written
};

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// Updates master, exp_avg and exp_avg_sq (n), all fp32, and writes weights (n) in their dtype;
// weights may be master itself. gradients (n) fp32. step: one.
void adam_update(const Tensor& weights, const Tensor& master, const Tensor& exp_avg,
                 const Tensor& exp_avg_sq, const Tensor& gradients, const AdamConstants& constants,
                 const AdamStep* step, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::adam_update) adam_update;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void adam_update(const Tensor& weights, const Tensor& master, const Tensor& exp_avg,
                        const Tensor& exp_avg_sq, const Tensor& gradients,
                        const AdamConstants& constants, const AdamStep* step, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::adam_update(weights, master, exp_avg, exp_avg_sq, gradients, constants, step,
                               stream);
  }
  return cpu::adam_update(weights, master, exp_avg, exp_avg_sq, gradients, constants, step, stream);
}

}  // namespace lockstep::kernels
