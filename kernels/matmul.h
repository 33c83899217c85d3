#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/activation.h"

// Products with a weight matrix: the three that a linear layer needs.
//
//   forward:          y[n,o]        = sum_i x[n,i] * weight[o,i] + bias[o]
//   backward, input:  dx[n,i]       = sum_o dy[n,o] * weight[o,i]
//   backward, weight: dweight[o,i] += sum_n dy[n,o] * x[n,i]
//                     dbias[o]     += sum_n dy[n,o]
//
// and the first two with an activation f (activation.h) on the side of O in the first, of I in the
// second, where the device can do both at once:
//
//   forward:          z[n,o]        = sum_i x[n,i] * weight[o,i] + bias[o],  y[n,o] = f(z[n,o])
//   backward, input:  dz[n,i]       = f'(z[n,i]) * sum_o dy[n,o] * weight[o,i]
//
// N rows (tokens, B*T), I inputs, O outputs. x, y, z, dx, dy, dz, weight and bias share one dtype;
// dweight and dbias are fp32. Products of bf16 and fp16 are added up in fp32; where the machine has
// no fast product of the type, operands are widened and multiplied in fp32. Work is cut into pieces
// that depend on the shape alone, each computed by one thread: the same bits for any number of
// threads. On the CPU a row of y has the same bits whatever the other rows are, and however many.
namespace lockstep::kernels {

// How new tokens go through a model. Their results agree but for rounding.
enum class Rows {
  in_tiles,    // many at a time: a prompt, a batch
  one_by_one,  // each as if it were alone, at the speed at which weights are read: generation
};

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// Writes y (N, O). bias may be empty. Rows go in tiles.
void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    Stream& stream);

// The same, rows one by one. Each part of the weight is read from memory once for all rows.
void linear_forward_one_by_one(const Tensor& y, const Tensor& x, const Tensor& weight,
                               const Tensor& bias, Stream& stream);

// Writes dx (N, I).
void linear_backward_input(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                           Stream& stream);

// Adds to dweight (O, I) and, unless it is empty, to dbias (O).
void linear_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                            const Tensor& x, Stream& stream);

// Writes z (N, O) and y (N, O). bias may be empty. Whether y is made of z as it is stored or before
// it is rounded is up to the device; always the same for the same shapes.
void linear_activation_forward(const Tensor& y, const Tensor& z, const Tensor& x,
                               const Tensor& weight, const Tensor& bias, Activation activation,
                               Stream& stream);

// Writes dz (N, I); z (N, I) as linear_activation_forward left it.
void linear_activation_backward_input(const Tensor& dz, const Tensor& dy, const Tensor& weight,
                                      const Tensor& z, Activation activation, Stream& stream);

// Whether the machine multiplies this type faster than fp32, by an instruction of its own.
bool has_fast_product(DType dtype);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::linear_forward) linear_forward;
decltype(cpu::linear_backward_input) linear_backward_input;
decltype(cpu::linear_backward_weight) linear_backward_weight;
decltype(cpu::linear_activation_forward) linear_activation_forward;
decltype(cpu::linear_activation_backward_input) linear_activation_backward_input;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight,
                           const Tensor& bias, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::linear_forward(y, x, weight, bias, stream);
  }
  return cpu::linear_forward(y, x, weight, bias, stream);
}

// On a GPU there is one way for both, and bits depend on the number of rows.
inline void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight,
                           const Tensor& bias, Rows rows, Stream& stream) {
  if (rows == Rows::in_tiles || stream.device() != Device::cpu) {
    return linear_forward(y, x, weight, bias, stream);
  }
  return cpu::linear_forward_one_by_one(y, x, weight, bias, stream);
}

inline void linear_backward_input(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                                  Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::linear_backward_input(dx, dy, weight, stream);
  }
  return cpu::linear_backward_input(dx, dy, weight, stream);
}

inline void linear_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                                   const Tensor& x, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::linear_backward_weight(dweight, dbias, dy, x, stream);
  }
  return cpu::linear_backward_weight(dweight, dbias, dy, x, stream);
}

inline void linear_activation_forward(const Tensor& y, const Tensor& z, const Tensor& x,
                                      const Tensor& weight, const Tensor& bias,
                                      Activation activation, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::linear_activation_forward(y, z, x, weight, bias, activation, stream);
  }
  return cpu::linear_activation_forward(y, z, x, weight, bias, activation, stream);
}

inline void linear_activation_forward(const Tensor& y, const Tensor& z, const Tensor& x,
                                      const Tensor& weight, const Tensor& bias,
                                      Activation activation, Rows rows, Stream& stream) {
  if (rows == Rows::in_tiles || stream.device() != Device::cpu) {
    return linear_activation_forward(y, z, x, weight, bias, activation, stream);
  }
  cpu::linear_forward_one_by_one(z, x, weight, bias, stream);
  cpu::activation_forward(y, z, activation, stream);
}

inline void linear_activation_backward_input(const Tensor& dz, const Tensor& dy,
                                             const Tensor& weight, const Tensor& z,
                                             Activation activation, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda)
      return cuda::linear_activation_backward_input(dz, dy, weight, z, activation, stream);
  }
  return cpu::linear_activation_backward_input(dz, dy, weight, z, activation, stream);
}

}  // namespace lockstep::kernels
