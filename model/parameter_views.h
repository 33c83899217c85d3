#pragma once
#include <vector>

#include "core/tensor.h"
#include "model/parameter_table.h"

// Parameters, or their gradients, as views of a flat buffer: what the forward and backward passes
// read and write. Letters for shapes as in model/transformer.h; empty where the model has none.
namespace lockstep {

struct LayerParameters {
  Tensor attention_norm_gain, attention_norm_bias;  // (C)
  Tensor qkv_weight, qkv_bias;                      // ((H + 2K) * D, C), ((H + 2K) * D)
  Tensor output_weight, output_bias;                // (C, H * D), (C)
  Tensor ffn_norm_gain, ffn_norm_bias;              // (C)
  Tensor up_weight, up_bias;                        // (F, C), (F); llama: gate and up, (2F, C)
  Tensor down_weight, down_bias;                    // (C, F), (C)
};

struct ModelParameters {
  Tensor tokens, positions;  // (V, C), (context length, C)
  std::vector<LayerParameters> layers;
  Tensor final_gain, final_bias;  // (C)
  Tensor classifier;              // (V, C); tied: the same as tokens
};

// `flat` holds table.size() elements.
ModelParameters parameter_views(const ParameterTable& table, const Tensor& flat);

}  // namespace lockstep
