#pragma once
#include "core/device.h"
#include "core/tensor.h"

// Output layer, softmax and cross-entropy in one, by chunks of tokens: logits of one chunk stand in
// memory at a time, never (N, V).
//
//   logits[n,v] = x[n] . weight[v]
//   losses[n]   = log sum_v exp(logits[n,v]) - logits[n, targets[n]]       nats
//
// N tokens, C channels, V tokens of vocabulary. x (N, C), weight (V, C) and dx share one dtype;
// logits and losses are fp32; targets (N) int32. A target of -1 is not counted: its loss and
// gradient are zero.
namespace lockstep::kernels::cpu {

// Writes losses (N).
void classifier_loss(const Tensor& losses, const Tensor& x, const Tensor& weight,
                     const Tensor& targets, Stream& stream);

// Writes losses (N) and dx (N, C), adds to dweight (V, C) fp32: the gradient of scale * sum losses.
// scale: one number, in the memory of the device that computes.
//   dlogits[n,v] = scale * (exp(logits[n,v] - lse[n]) - [v == targets[n]])
void classifier_loss_and_gradient(const Tensor& losses, const Tensor& dx, const Tensor& dweight,
                                  const Tensor& x, const Tensor& weight, const Tensor& targets,
                                  const float* scale, Stream& stream);

// Writes logits (N, V) fp32: generation needs them whole, for few rows, which go one by one
// (kernels/matmul.h).
void classifier_logits(const Tensor& logits, const Tensor& x, const Tensor& weight, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::classifier_loss) classifier_loss;
decltype(cpu::classifier_loss_and_gradient) classifier_loss_and_gradient;
decltype(cpu::classifier_logits) classifier_logits;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void classifier_loss(const Tensor& losses, const Tensor& x, const Tensor& weight,
                            const Tensor& targets, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::classifier_loss(losses, x, weight, targets, stream);
  }
  return cpu::classifier_loss(losses, x, weight, targets, stream);
}

inline void classifier_loss_and_gradient(const Tensor& losses, const Tensor& dx,
                                         const Tensor& dweight, const Tensor& x,
                                         const Tensor& weight, const Tensor& targets,
                                         const float* scale, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::classifier_loss_and_gradient(losses, dx, dweight, x, weight, targets, scale,
                                                stream);
  }
  return cpu::classifier_loss_and_gradient(losses, dx, dweight, x, weight, targets, scale, stream);
}

inline void classifier_logits(const Tensor& logits, const Tensor& x, const Tensor& weight,
                              Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::classifier_logits(logits, x, weight, stream);
  }
  return cpu::classifier_logits(logits, x, weight, stream);
}

}  // namespace lockstep::kernels
