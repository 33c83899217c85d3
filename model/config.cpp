#include "model/config.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "core/check.h"

namespace lockstep {
namespace {

// Wide enough for any published model, and small enough that no product of sizes leaves int64.
constexpr int64_t kMaxVocab = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxContext = int64_t{1} << 24;
constexpr int64_t kMaxLayers = int64_t{1} << 12;
constexpr int64_t kMaxWidth = int64_t{1} << 20;

struct Range {
  const char* field;
  int64_t value, largest;
};

void check_ranges(const ModelConfig& c) {
  const Range ranges[] = {
      {"vocab-size", c.vocab_size, kMaxVocab}, {"context-length", c.context_length, kMaxContext},
      {"layers", c.num_layers, kMaxLayers},    {"hidden-size", c.hidden_size, kMaxWidth},
      {"heads", c.num_heads, kMaxWidth},       {"kv-heads", c.num_kv_heads, kMaxWidth},
      {"head-dim", c.head_dim, kMaxWidth},     {"ffn-size", c.ffn_size, 4 * kMaxWidth}};
  for (const Range& range : ranges) {
    if (range.value < 1 || range.value > range.largest) {
      throw UsageError("{} is {}: choose a value from 1 to {}", range.field, range.value,
                       range.largest);
    }
  }
  if (!(c.dropout >= 0 && c.dropout < 1)) {
    throw UsageError("dropout is {}: choose a value from 0 to below 1", c.dropout);
  }
  if (!(c.norm_epsilon > 0 && std::isfinite(c.norm_epsilon))) {
    throw UsageError("norm-epsilon is {}: choose a value above 0, such as 1e-5", c.norm_epsilon);
  }
}

void check_heads(const ModelConfig& c) {
  const bool fills_width = c.num_heads * c.head_dim == c.hidden_size;
  if (!fills_width && c.hidden_size % c.num_heads != 0) {
    throw UsageError("{} heads do not divide a hidden-size of {}: choose a divisor of it",
                     c.num_heads, c.hidden_size);
  }
  if (c.num_heads % c.num_kv_heads != 0) {
    throw UsageError("{} kv-heads do not divide {} heads: each must serve the same number of heads",
                     c.num_kv_heads, c.num_heads);
  }
  if (c.num_heads * c.head_dim > 4 * kMaxWidth) {
    throw UsageError("{} heads of head-dim {} are {} wide: choose {} or less", c.num_heads,
                     c.head_dim, c.num_heads * c.head_dim, 4 * kMaxWidth);
  }
  if (c.family == Family::gpt2) {
    if (c.num_kv_heads != c.num_heads) {
      throw UsageError(
          "{} kv-heads with {} heads: the gpt2 family has no grouped queries; drop "
          "kv-heads or choose family llama",
          c.num_kv_heads, c.num_heads);
    }
    if (!fills_width) {
      throw UsageError(
          "{} heads of head-dim {} are not a hidden-size of {}: family gpt2 needs "
          "heads * head-dim = hidden-size",
          c.num_heads, c.head_dim, c.hidden_size);
    }
  }
}

void check_rope(const ModelConfig& c) {
  if (c.head_dim % 2 != 0) {
    throw UsageError("head-dim is {} (hidden-size {}, {} heads): RoPE needs an even one",
                     c.head_dim, c.hidden_size, c.num_heads);
  }
  if (!(c.rope_theta > 1 && std::isfinite(c.rope_theta))) {
    throw UsageError("rope-theta is {}: choose a value above 1, such as 10000", c.rope_theta);
  }
  if (!c.rope_scaling) return;
  const RopeScaling& s = *c.rope_scaling;
  const bool good = s.factor >= 1 && std::isfinite(s.factor) && s.low_freq_factor > 0 &&
                    s.high_freq_factor > s.low_freq_factor && std::isfinite(s.high_freq_factor) &&
                    s.original_context_length >= 1 && s.original_context_length <= kMaxContext;
  if (!good) {
    throw UsageError(
        "rope-scaling has factor {}, low-freq-factor {}, high-freq-factor {}, "
        "original-context-length {}: needed are factor >= 1, 0 < low < high, and a "
        "length from 1 to {}",
        s.factor, s.low_freq_factor, s.high_freq_factor, s.original_context_length, kMaxContext);
  }
}

}  // namespace

ModelConfig family_defaults(Family family) {
  ModelConfig config;
  config.family = family;
  if (family == Family::llama) {
    config.activation = kernels::Activation::silu;
    config.tied_embeddings = false;
  }
  return config;
}

void fill_in_sizes(ModelConfig& config) {
  if (config.num_kv_heads == 0) config.num_kv_heads = config.num_heads;
  if (config.head_dim == 0 && config.num_heads > 0) {
    config.head_dim = config.hidden_size / config.num_heads;
  }
  if (config.ffn_size == 0 && config.hidden_size > 0 && config.hidden_size <= kMaxWidth) {
    config.ffn_size = config.family == Family::gpt2 ? 4 * config.hidden_size
                                                    : (8 * config.hidden_size + 47) / 48 * 16;
  }
}

void validate(const ModelConfig& config) {
  // Before head-dim's range, because a width below the number of heads leaves no head-dim at all.
  if (config.num_heads > 0 && config.hidden_size > 0 && config.head_dim == 0) {
    throw UsageError("{} heads do not divide a hidden-size of {}: choose a divisor of it",
                     config.num_heads, config.hidden_size);
  }
  check_ranges(config);
  check_heads(config);
  if (config.family == Family::llama) check_rope(config);
}

std::string_view name(Family family) { return family == Family::gpt2 ? "gpt2" : "llama"; }

std::optional<Family> family_from_name(std::string_view name) {
  if (name == "gpt2") return Family::gpt2;
  if (name == "llama") return Family::llama;
  return std::nullopt;
}

double training_flops_per_token(const ModelConfig& config) {
  const auto width = static_cast<double>(config.num_heads * config.head_dim);
  const auto channels = static_cast<double>(config.hidden_size);
  const auto packed = static_cast<double>(config.heads().packed());
  const auto layers = static_cast<double>(config.num_layers);
  const double ffn_matrices = config.family == Family::gpt2 ? 2 : 3;
  const double layer = packed * channels + width * channels +
                       ffn_matrices * static_cast<double>(config.ffn_size) * channels;
  const double in_products = layers * layer + static_cast<double>(config.vocab_size) * channels;
  return 6 * in_products + 6 * layers * width * static_cast<double>(config.context_length);
}

namespace {

// One field; `what` names it in errors as a path ("rope_scaling.factor").
template <class T>
T field(const nlohmann::json& json, const char* key, const std::string& what) {
  const auto found = json.find(key);
  if (found == json.end()) throw DataError("model configuration: {} is missing", what);
  const bool fits = std::is_same_v<T, bool>          ? found->is_boolean()
                    : std::is_same_v<T, std::string> ? found->is_string()
                    : std::is_integral_v<T>          ? found->is_number_integer()
                                                     : found->is_number();
  if (!fits)
    throw DataError("model configuration: {} is {}, of the wrong type", what,
                    found->dump().substr(0, 60));
  return found->get<T>();
}

template <class T>
T field(const nlohmann::json& json, const char* key) {
  return field<T>(json, key, key);
}

// A float as the double that is written alike: 1e-05 and not 9.999999747378752e-06.
double as_written(float x) { return std::stod(fmt::format("{}", x)); }

}  // namespace

nlohmann::json to_json(const ModelConfig& config) {
  nlohmann::json json = {{"family", name(config.family)},
                         {"vocab_size", config.vocab_size},
                         {"context_length", config.context_length},
                         {"num_layers", config.num_layers},
                         {"hidden_size", config.hidden_size},
                         {"num_heads", config.num_heads},
                         {"num_kv_heads", config.num_kv_heads},
                         {"head_dim", config.head_dim},
                         {"ffn_size", config.ffn_size},
                         {"activation", kernels::name(config.activation)},
                         {"dropout", as_written(config.dropout)},
                         {"norm_epsilon", as_written(config.norm_epsilon)},
                         {"tied_embeddings", config.tied_embeddings},
                         {"rope_theta", config.rope_theta},
                         {"rope_scaling", nullptr}};
  if (config.rope_scaling) {
    json["rope_scaling"] = {
        {"factor", config.rope_scaling->factor},
        {"low_freq_factor", config.rope_scaling->low_freq_factor},
        {"high_freq_factor", config.rope_scaling->high_freq_factor},
        {"original_context_length", config.rope_scaling->original_context_length}};
  }
  return json;
}

ModelConfig model_config_from_json(const nlohmann::json& json) {
  if (!json.is_object()) throw DataError("model configuration: not a JSON object");
  ModelConfig config;
  const auto family_name = field<std::string>(json, "family");
  const auto family = family_from_name(family_name);
  if (!family) {
    throw DataError("model configuration: family is \"{}\", not gpt2 or llama", family_name);
  }
  config.family = *family;
  config.vocab_size = field<int64_t>(json, "vocab_size");
  config.context_length = field<int64_t>(json, "context_length");
  config.num_layers = field<int64_t>(json, "num_layers");
  config.hidden_size = field<int64_t>(json, "hidden_size");
  config.num_heads = field<int64_t>(json, "num_heads");
  config.num_kv_heads = field<int64_t>(json, "num_kv_heads");
  config.head_dim = field<int64_t>(json, "head_dim");
  config.ffn_size = field<int64_t>(json, "ffn_size");
  const auto activation_name = field<std::string>(json, "activation");
  const auto activation = kernels::activation_from_name(activation_name);
  if (!activation) {
    throw DataError("model configuration: activation is \"{}\", which is not known",
                    activation_name);
  }
  config.activation = *activation;
  config.dropout = field<float>(json, "dropout");
  config.norm_epsilon = field<float>(json, "norm_epsilon");
  config.tied_embeddings = field<bool>(json, "tied_embeddings");
  config.rope_theta = field<double>(json, "rope_theta");
  const auto scaling = json.find("rope_scaling");
  if (scaling == json.end()) throw DataError("model configuration: rope_scaling is missing");
  if (!scaling->is_null()) {
    if (!scaling->is_object()) {
      throw DataError("model configuration: rope_scaling is neither null nor an object");
    }
    config.rope_scaling = {
        field<double>(*scaling, "factor", "rope_scaling.factor"),
        field<double>(*scaling, "low_freq_factor", "rope_scaling.low_freq_factor"),
        field<double>(*scaling, "high_freq_factor", "rope_scaling.high_freq_factor"),
        field<int64_t>(*scaling, "original_context_length",
                       "rope_scaling.original_context_length")};
  }
  return config;
}

}  // namespace lockstep
