#include "model/parameter_views.h"

namespace lockstep {

ModelParameters parameter_views(const ParameterTable& table, const Tensor& flat) {
  const auto view = [&](const std::string& name) {
    const Parameter* parameter = table.find(name);
    return parameter == nullptr ? Tensor() : table.view(flat, *parameter);
  };
  const auto first_of = [](const Tensor& a, const Tensor& b) { return a.empty() ? b : a; };
  ModelParameters all;
  all.tokens = view("embedding.tokens.weight");
  all.positions = view("embedding.positions.weight");
  const int num_layers = table.num_groups() - 2;
  for (int n = 0; n < num_layers; n++) {
    const auto in_layer = [&](const char* name) {
      return view(fmt::format("layers.{}.{}", n, name));
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
         .down_bias = in_layer("ffn.down.bias")});
  }
  all.final_gain = view("final_norm.weight");
  all.final_bias = view("final_norm.bias");
  all.classifier = first_of(view("classifier.weight"), all.tokens);
  return all;
}

}  // namespace lockstep
