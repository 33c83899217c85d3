#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention.h"

namespace lockstep {

// gpt2:  learned positions, layernorm, biases, one feed-forward matrix up and one down
//        (Radford et al., 2019)
// llama: RoPE, RMSNorm, gated feed-forward, grouped-query attention, no biases
//        (Touvron et al., 2023; Grattafiori et al., 2024)
enum class Family { gpt2, llama };

// Llama 3.1's stretching of RoPE's wavelengths beyond the context it was first trained on.
struct RopeScaling {
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_context_length = 8192;
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

// The architecture: all that fixes the names and shapes of parameters and what forward computes.
struct ModelConfig {
  Family family = Family::gpt2;
  int64_t vocab_size = 0;
  int64_t context_length = 0;  // longest sequence, T
  int64_t num_layers = 0;      // L
  int64_t hidden_size = 0;     // C
  int64_t num_heads = 0;       // H
  int64_t num_kv_heads = 0;    // K
  int64_t head_dim = 0;        // D; hidden_size / num_heads unless a published model says otherwise
  int64_t ffn_size = 0;        // F
  kernels::Activation activation = kernels::Activation::gelu_tanh;
  float dropout = 0;
  float norm_epsilon = 1e-5f;
  bool tied_embeddings = true;              // the output layer is the token embedding
  double rope_theta = 10000;                // llama
  std::optional<RopeScaling> rope_scaling;  // llama

  kernels::Heads heads() const { return {num_heads, num_kv_heads, head_dim}; }
  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

// A family's choices where there are several (activation, tied output layer), with sizes left 0.
ModelConfig family_defaults(Family family);

// Fills in sizes that are 0: num_kv_heads = num_heads, head_dim = hidden_size / num_heads, ffn_size
// = 4 C for gpt2 and 8/3 C, rounded up to a multiple of 16, for llama (Shazeer, 2020: three
// matrices with the parameters of two).
void fill_in_sizes(ModelConfig& config);

// Throws UsageError, naming the sizes, when they do not fit together.
void validate(const ModelConfig& config);

// Published sizes ("gpt2-124m", "llama-1b", ...), without vocabulary.
const std::vector<std::string>& preset_names();
// Throws UsageError with the nearest names when there is no such preset.
ModelConfig preset(std::string_view name);

std::string_view name(Family family);
std::optional<Family> family_from_name(std::string_view name);

// Every field by its name above. from_json throws DataError on a missing or ill-typed field.
nlohmann::json to_json(const ModelConfig& config);
ModelConfig model_config_from_json(const nlohmann::json& json);

// Floating-point operations of training on one token: 6 N + 6 L W T with N the parameters that
// take part in products and W = H * D (causal attention counts half of the square).
double training_flops_per_token(const ModelConfig& config);

}  // namespace lockstep
