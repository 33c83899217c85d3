#pragma once
#include <functional>
#include <vector>

#include "core/tensor.h"
#include "kernels/quantized_matmul.h"
#include "model/parameter_table.h"

// Parameters, or their gradients, as views of a flat buffer: what the forward and backward passes
// read and write. Letters for shapes as in model/transformer.h; empty where the model has none.
namespace lockstep {

// What stands in the place of a layer's matrices where they are quantized.
struct QuantizedLayer {
  kernels::QuantizedMatrix qkv, output, up, down;
};

struct LayerParameters {
  Tensor attention_norm_gain, attention_norm_bias;  // (C)
  Tensor qkv_weight, qkv_bias;                      // ((H + 2K) * D, C), ((H + 2K) * D)
  Tensor output_weight, output_bias;                // (C, H * D), (C)
  Tensor ffn_norm_gain, ffn_norm_bias;              // (C)
  Tensor up_weight, up_bias;                        // (F, C), (F); llama: gate and up, (2F, C)
  Tensor down_weight, down_bias;                    // (C, F), (C)
  QuantizedLayer quantized;                         // empty where the weight above is not
};

struct ModelParameters {
  Tensor tokens, positions;  // (V, C), (context length, C)
  std::vector<LayerParameters> layers;
  Tensor final_gain, final_bias;  // (C)
  Tensor classifier;              // (V, C); tied: the same as tokens
};

// `flat` holds table.size() elements.
ModelParameters parameter_views(const ParameterTable& table, const Tensor& flat);

// The same of parameters that stand apart: `values` gives each that is whole, empty for others, and
// `quantized` the matrix of those.
ModelParameters parameter_views(
    const ParameterTable& table, const std::function<Tensor(const Parameter&)>& values,
    const std::function<kernels::QuantizedMatrix(const Parameter&)>& quantized);

}  // namespace lockstep
