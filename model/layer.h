#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/dropout.h"
#include "kernels/matmul.h"
#include "kernels/residual_sum.h"
#include "model/config.h"
#include "model/parameter_views.h"

// One layer of a transformer, forward and backward. Both families have the same frame:
//
//   middle = input  + dropout(output(attention(qkv(norm(input)))))
//   output = middle + dropout(down(activation(up(norm(middle)))))
//
// with layernorm, biases and a plain activation (gpt2), or RMSNorm, RoPE and a gated activation
// (llama). Letters for shapes as in model/transformer.h.
namespace lockstep {

// What one layer computes, in compute precision where nothing else is said, and what of it backward
// reads. Forward writes all but `input`.
struct LayerActivations {
  Tensor input;            // (B, T, C)           read by the attention norm
  Tensor attention_mean;   // (N) fp32            the same; gpt2
  Tensor attention_scale;  // (N) fp32            the same: 1 / deviation, llama: 1 / RMS
  Tensor normed_input;     // (B, T, C)           read by the gradient of qkv_weight
  Tensor qkv;              // (B, T, (H + 2K)*D)  read by attention; after RoPE
  Tensor attended;         // (B, T, H * D)       read by attention, and for output_weight
  Tensor lse;              // (B, H, T) fp32      read by attention
  Tensor middle;           // (B, T, C)           read by the feed-forward norm
  Tensor ffn_mean;         // (N) fp32            the same; gpt2
  Tensor ffn_scale;        // (N) fp32            the same
  Tensor normed_middle;    // (B, T, C)           read by the gradient of up_weight
  Tensor up;               // (B, T, F)           read by the activation; llama: gate, up: (.., 2F)
  Tensor activated;        // (B, T, F)           read by the gradient of down_weight
  Tensor output;           // (B, T, C)           not read: may be `input` of the same layer when
                           //                     there is no backward; the next layer's input
  kernels::Rows rows = kernels::Rows::in_tiles;  // how products go
};

// Gradients on the way through one layer, of one micro-batch, in compute precision; the layers use
// the same ones in turn.
struct LayerGradients {
  Tensor residual;   // (B, T, C)  of the layer's output before, of its input after layer_backward
  Tensor branch;     // (B, T, C)
  Tensor qkv;        // (B, T, (H + 2K) * D)
  Tensor attended;   // (B, T, H * D)
  Tensor up;         // as LayerActivations::up
  Tensor activated;  // (B, T, F); llama
};

// The masks of one layer's three dropouts, as in GPT-2.
struct LayerDropout {
  kernels::DropoutMask attention;         // of attention's probabilities
  kernels::DropoutMask attention_branch;  // of what attention adds to the residual stream
  kernels::DropoutMask ffn_branch;        // of what the feed-forward part adds
};

// cos and sin of RoPE (kernels/rope.h), (positions, D) fp32 on `device`, with the wavelengths of
// Llama 3.1 where the configuration has rope_scaling:
//
//   w_i = rope_theta^(-2 i / D),  n_i = original_context_length * w_i / (2 pi)   (turns in it)
//   w_i unchanged for n_i > high_freq_factor, w_i / factor for n_i < low_freq_factor, else
//   (1 - s) w_i / factor + s w_i,  s = (n_i - low_freq_factor) / (high_freq_factor -
//   low_freq_factor)
Buffer rope_table(const ModelConfig& config, int64_t positions, Device device);
inline Shape rope_table_shape(const ModelConfig& config, int64_t positions) {
  return {positions, config.head_dim};
}

// A layer's forward pass is: before_attention; attention from `qkv` to `attended` (the caller's:
// within the batch, or with a cache of earlier keys and values); after_attention.
//
// Writes the activations up to qkv. Without a rope_table (gpt2, or a caller that turns queries and
// keys itself) there is no RoPE; the first token of each sequence stands at first_position.
void before_attention(const ModelConfig& config, const LayerParameters& weights,
                      const LayerActivations& activations, const Tensor& rope_table,
                      int64_t first_position, Stream& stream);
// Writes the activations from middle on.
void after_attention(const ModelConfig& config, const LayerParameters& weights,
                     const LayerActivations& activations, const LayerDropout& dropout,
                     Stream& stream);

// The forward pass of whole sequences, attention within each.
void layer_forward(const ModelConfig& config, const LayerParameters& weights,
                   const LayerActivations& activations, const Tensor& rope_table,
                   const LayerDropout& dropout, Stream& stream);

// Turns gradients.residual from the gradient of the layer's output into that of its input, and adds
// to `parameter_gradients` (fp32). Reads activations as layer_forward left them.
void layer_backward(const ModelConfig& config, const LayerParameters& weights,
                    const LayerParameters& parameter_gradients, const LayerActivations& activations,
                    const LayerGradients& gradients, const Tensor& rope_table,
                    const LayerDropout& dropout, Stream& stream);

// The family's norm of each row, forward and backward (kernels/layernorm.h, kernels/rmsnorm.h), for
// the final norm too. mean and bias are empty for llama.
void norm_forward(const ModelConfig& config, const Tensor& y, const Tensor& mean,
                  const Tensor& scale, const Tensor& x, const kernels::ResidualSum& residual,
                  const Tensor& gain, const Tensor& bias, Stream& stream);
// Adds to dx, dgain and dbias.
void norm_backward(const ModelConfig& config, const Tensor& dx, const Tensor& dgain,
                   const Tensor& dbias, const Tensor& dy, const Tensor& x, const Tensor& gain,
                   const Tensor& mean, const Tensor& scale, Stream& stream);

}  // namespace lockstep
