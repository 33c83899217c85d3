#include "model/parameter_views.h"

namespace lockstep {

ModelParameters parameter_views(
    const ParameterTable& table, const std::function<Tensor(const Parameter&)>& values,
    const std::function<kernels::QuantizedMatrix(const Parameter&)>& quantized) {
  const auto view = [&](const std::string& name) {
    const Parameter* parameter = table.find(name);
    return parameter == nullptr ? Tensor() : values(*parameter);
  };
  const auto first_of = [](const Tensor& a, const Tensor& b) { return a.empty() ? b : a; };
  ModelParameters all;
  all.tokens = view("embedding.tokens.weight");
  all.positions = view("embedding.positions.weight");
  const int num_layers = table.num_groups() - 2;
  const bool gated = table.find("layers.0.ffn.gate_up.weight") != nullptr;
  for (int n = 0; n < num_layers; n++) {
    const auto in_layer = [&](const char* name) {
      return view(fmt::format("layers.{}.{}", n, name));
    };
    const auto matrix = [&](const char* name) {
      const Parameter* parameter = table.find(fmt::format("layers.{}.{}", n, name));
      return parameter == nullptr ? kernels::QuantizedMatrix() : quantized(*parameter);
    };
    all.layers.push_back(
        {.attention_norm_gain = in_layer("attention_norm.weight"),
         .attention_norm_bias = in_layer("attention_norm.bias"),
         .qkv_weight = in_layer("attention.qkv.weight"),
         .qkv_bias = in_layer("attention.qkv.bias"),
         .output_weight = in_layer("attention.output.weight"),
         .output_bias = in_layer("attention.output.bias"),
         .ffn_norm_gain = in_layer("ffn_norm.weight"),
         .ffn_norm_bias = in_layer("ffn_norm.bias"),
         .up_weight = first_of(in_layer("ffn.up.weight"), in_layer("ffn.gate_up.weight")),
         .up_bias = in_layer("ffn.up.bias"),
         .down_weight = in_layer("ffn.down.weight"),
         .down_bias = in_layer("ffn.down.bias"),
         .quantized = {.qkv = matrix("attention.qkv.weight"),
                       .output = matrix("attention.output.weight"),
                       .up = gated ? matrix("ffn.gate_up.weight") : matrix("ffn.up.weight"),
                       .down = matrix("ffn.down.weight")}});
  }
  all.final_gain = view("final_norm.weight");
  all.final_bias = view("final_norm.bias");
  all.classifier = first_of(view("classifier.weight"), all.tokens);
  return all;
}

ModelParameters parameter_views(const ParameterTable& table, const Tensor& flat) {
  return parameter_views(
      table, [&](const Parameter& parameter) { return table.view(flat, parameter); },
      [](const Parameter&) { return kernels::QuantizedMatrix(); });
}

}  // namespace lockstep
