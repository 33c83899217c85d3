#include "model/layer.h"

#include <cmath>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"
#include "kernels/quantized_matmul.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"

namespace lockstep {

namespace {

double rope_frequency(const ModelConfig& config, int64_t i) {
  const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
  const double frequency = std::pow(config.rope_theta, exponent);
  if (!config.rope_scaling) return frequency;
  const RopeScaling& s = *config.rope_scaling;
  constexpr double kTwoPi = 6.283185307179586;
  const double turns = static_cast<double>(s.original_context_length) * frequency / kTwoPi;
  if (turns > s.high_freq_factor) return frequency;
  if (turns < s.low_freq_factor) return frequency / s.factor;
  const double smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * frequency / s.factor + smooth * frequency;
}

}  // namespace

Buffer rope_table(const ModelConfig& config, int64_t positions, Device device) {
  CHECK(config.head_dim % 2 == 0);
  const int64_t half = config.head_dim / 2;
  Buffer table(DType::fp32, rope_table_shape(config, positions));
  for (int64_t i = 0; i < half; i++) {
    const double frequency = rope_frequency(config, i);
    for (int64_t t = 0; t < positions; t++) {
      const double angle = static_cast<double>(t) * frequency;
      float* row = table.tensor().as<float>() + t * 2 * half;
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  if (device == Device::cpu) return table;
  Buffer there(DType::fp32, rope_table_shape(config, positions), device);
  Stream stream(device);
  copy(there.tensor(), table.tensor(), stream);
  stream.synchronize();
  return there;
}

void norm_forward(const ModelConfig& config, const Tensor& y, const Tensor& mean,
                  const Tensor& scale, const Tensor& x, const kernels::ResidualSum& residual,
                  const Tensor& gain, const Tensor& bias, Stream& stream) {
  if (config.family == Family::gpt2) {
    kernels::layernorm_forward(y, mean, scale, x, residual, gain, bias, config.norm_epsilon,
                               stream);
  } else {
    kernels::rmsnorm_forward(y, scale, x, residual, gain, config.norm_epsilon, stream);
  }
}

void norm_backward(const ModelConfig& config, const Tensor& dx, const Tensor& dgain,
                   const Tensor& dbias, const Tensor& dy, const Tensor& x, const Tensor& gain,
                   const Tensor& mean, const Tensor& scale, Stream& stream) {
  if (config.family == Family::gpt2) {
    kernels::layernorm_backward(dx, dgain, dbias, dy, x, gain, mean, scale, stream);
  } else {
    kernels::rmsnorm_backward(dx, dgain, dy, x, gain, scale, stream);
  }
}

namespace {

void linear(const Tensor& y, const Tensor& x, const Tensor& weight,
            const kernels::QuantizedMatrix& quantized, const Tensor& bias, kernels::Rows rows,
            Stream& stream) {
  if (quantized.empty()) return kernels::linear_forward(y, x, weight, bias, rows, stream);
  // One way for both: a row's bits do not depend on how many there are.
  kernels::cpu::quantized_linear_forward(y, x, quantized, bias, stream);
}

}  // namespace

void before_attention(const ModelConfig& config, const LayerParameters& w,
                      const LayerActivations& a, const Tensor& rope_table, int64_t first_position,
                      Stream& stream) {
  norm_forward(config, a.normed_input, a.attention_mean, a.attention_scale, a.input, {},
               w.attention_norm_gain, w.attention_norm_bias, stream);
  linear(a.qkv, a.normed_input, w.qkv_weight, w.quantized.qkv, w.qkv_bias, a.rows, stream);
  if (!rope_table.empty()) {
    kernels::rope_forward(a.qkv, rope_table, config.heads(), first_position, stream);
  }
}

void after_attention(const ModelConfig& config, const LayerParameters& w, const LayerActivations& a,
                     const LayerDropout& dropout, Stream& stream) {
  linear(a.middle, a.attended, w.output_weight, w.quantized.output, w.output_bias, a.rows, stream);
  Tensor x = a.input;
  kernels::ResidualSum residual{a.middle, a.middle};
  if (dropout.attention_branch.active()) {
    kernels::residual_add(a.middle, a.input, a.middle, dropout.attention_branch, stream);
    x = a.middle, residual = {};
  }
  norm_forward(config, a.normed_middle, a.ffn_mean, a.ffn_scale, x, residual, w.ffn_norm_gain,
               w.ffn_norm_bias, stream);
  if (config.family == Family::gpt2 && w.quantized.up.empty()) {
    kernels::linear_activation_forward(a.activated, a.up, a.normed_middle, w.up_weight, w.up_bias,
                                       config.activation, a.rows, stream);
  } else {
    linear(a.up, a.normed_middle, w.up_weight, w.quantized.up, w.up_bias, a.rows, stream);
    const auto activate = config.family == Family::gpt2 ? kernels::activation_forward
                                                        : kernels::gated_activation_forward;
    activate(a.activated, a.up, config.activation, stream);
  }
  linear(a.output, a.activated, w.down_weight, w.quantized.down, w.down_bias, a.rows, stream);
  kernels::residual_add(a.output, a.middle, a.output, dropout.ffn_branch, stream);
}

void layer_forward(const ModelConfig& config, const LayerParameters& weights,
                   const LayerActivations& activations, const Tensor& rope_table,
                   const LayerDropout& dropout, Stream& stream) {
  before_attention(config, weights, activations, rope_table, 0, stream);
  kernels::attention_forward(activations.attended, activations.lse, activations.qkv, config.heads(),
                             dropout.attention, stream);
  after_attention(config, weights, activations, dropout, stream);
}

namespace {

// The gradient of what a branch computed, from that of what it added to the residual stream: the
// same, but for dropout.
Tensor branch_gradient(const LayerGradients& d, const kernels::DropoutMask& mask, Stream& stream) {
  if (!mask.active()) return d.residual;
  kernels::dropout(d.branch, d.residual, mask, stream);
  return d.branch;
}

void ffn_backward(const ModelConfig& config, const LayerParameters& w, const LayerParameters& dw,
                  const LayerActivations& a, const LayerGradients& d,
                  const kernels::DropoutMask& mask, Stream& stream) {
  const Tensor dbranch = branch_gradient(d, mask, stream);
  kernels::linear_backward_weight(dw.down_weight, dw.down_bias, dbranch, a.activated, stream);
  if (config.family == Family::gpt2) {
    kernels::linear_activation_backward_input(d.up, dbranch, w.down_weight, a.up, config.activation,
                                              stream);
  } else {
    kernels::linear_backward_input(d.activated, dbranch, w.down_weight, stream);
    kernels::gated_activation_backward(d.up, d.activated, a.up, config.activation, stream);
  }
  kernels::linear_backward_weight(dw.up_weight, dw.up_bias, d.up, a.normed_middle, stream);
  kernels::linear_backward_input(d.branch, d.up, w.up_weight, stream);
  norm_backward(config, d.residual, dw.ffn_norm_gain, dw.ffn_norm_bias, d.branch, a.middle,
                w.ffn_norm_gain, a.ffn_mean, a.ffn_scale, stream);
}

void attention_branch_backward(const ModelConfig& config, const LayerParameters& w,
                               const LayerParameters& dw, const LayerActivations& a,
                               const LayerGradients& d, const Tensor& rope_table,
                               const LayerDropout& dropout, Stream& stream) {
  const Tensor dbranch = branch_gradient(d, dropout.attention_branch, stream);
  kernels::linear_backward_weight(dw.output_weight, dw.output_bias, dbranch, a.attended, stream);
  kernels::linear_backward_input(d.attended, dbranch, w.output_weight, stream);
  kernels::attention_backward(d.qkv, d.attended, a.attended, a.lse, a.qkv, config.heads(),
                              dropout.attention, stream);
  if (config.family == Family::llama) {
    kernels::rope_backward(d.qkv, rope_table, config.heads(), 0, stream);
  }
  kernels::linear_backward_weight(dw.qkv_weight, dw.qkv_bias, d.qkv, a.normed_input, stream);
  kernels::linear_backward_input(d.branch, d.qkv, w.qkv_weight, stream);
  norm_backward(config, d.residual, dw.attention_norm_gain, dw.attention_norm_bias, d.branch,
                a.input, w.attention_norm_gain, a.attention_mean, a.attention_scale, stream);
}

}  // namespace

void layer_backward(const ModelConfig& config, const LayerParameters& weights,
                    const LayerParameters& parameter_gradients, const LayerActivations& activations,
                    const LayerGradients& gradients, const Tensor& rope_table,
                    const LayerDropout& dropout, Stream& stream) {
  ffn_backward(config, weights, parameter_gradients, activations, gradients, dropout.ffn_branch,
               stream);
  attention_branch_backward(config, weights, parameter_gradients, activations, gradients,
                            rope_table, dropout, stream);
}

}  // namespace lockstep
