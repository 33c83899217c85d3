#pragma once
#include <optional>
#include <string_view>

#include "core/device.h"
#include "core/tensor.h"

// Elementwise activations, each with its exact derivative.
//
//   relu       max(x, 0)                                  derivative at 0: 0
//   sigmoid    1 / (1 + exp(-x))
//   tanh       tanh(x)
//   gelu       x * (1 + erf(x / sqrt 2)) / 2               (Hendrycks & Gimpel, 2016)
//   gelu_tanh  x * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2   as in GPT-2
//   silu       x * sigmoid(x)
//
// Arithmetic is fp32 whatever the dtype, which all operands share. NaN gives NaN, infinities the
// limit, but gelu and silu of -infinity NaN (infinity times zero), as in PyTorch.
namespace lockstep::kernels {

enum class Activation { relu, sigmoid, tanh, gelu, gelu_tanh, silu };

std::string_view name(Activation activation);
std::optional<Activation> activation_from_name(std::string_view name);

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// y = f(x), any shape; y may be x.
void activation_forward(const Tensor& y, const Tensor& x, Activation activation, Stream& stream);

// dx = dy * f'(x); dx may be dy.
void activation_backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Activation activation,
                         Stream& stream);

// Gated linear units (Shazeer, 2020; SwiGLU with silu). gate_up (N, 2F) holds the gate, then up.
//   y[n,f] = f(gate[n,f]) * up[n,f]                                 y (N, F)
void gated_activation_forward(const Tensor& y, const Tensor& gate_up, Activation activation,
                              Stream& stream);

// Writes dgate_up (N, 2F), which may be gate_up:
//   dgate = dy * up * f'(gate),  dup = dy * f(gate)
void gated_activation_backward(const Tensor& dgate_up, const Tensor& dy, const Tensor& gate_up,
                               Activation activation, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::activation_forward) activation_forward;
decltype(cpu::activation_backward) activation_backward;
decltype(cpu::gated_activation_forward) gated_activation_forward;
decltype(cpu::gated_activation_backward) gated_activation_backward;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void activation_forward(const Tensor& y, const Tensor& x, Activation activation,
                               Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::activation_forward(y, x, activation, stream);
  }
  return cpu::activation_forward(y, x, activation, stream);
}

inline void activation_backward(const Tensor& dx, const Tensor& dy, const Tensor& x,
                                Activation activation, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::activation_backward(dx, dy, x, activation, stream);
  }
  return cpu::activation_backward(dx, dy, x, activation, stream);
}

inline void gated_activation_forward(const Tensor& y, const Tensor& gate_up, Activation activation,
                                     Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::gated_activation_forward(y, gate_up, activation, stream);
  }
  return cpu::gated_activation_forward(y, gate_up, activation, stream);
}

inline void gated_activation_backward(const Tensor& dgate_up, const Tensor& dy,
                                      const Tensor& gate_up, Activation activation,
                                      Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::gated_activation_backward(dgate_up, dy, gate_up, activation, stream);
  }
  return cpu::gated_activation_backward(dgate_up, dy, gate_up, activation, stream);
}

}  // namespace lockstep::kernels
