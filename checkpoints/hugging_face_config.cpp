#include <array>
#include <cmath>
#include <utility>

#include "checkpoints/hugging_face.h"
#include "core/check.h"

namespace lockstep {
namespace {

using kernels::Activation;

// Their names, the one to write first.
constexpr std::array<std::pair<const char*, Activation>, 9> kActivations{
    {{"gelu_new", Activation::gelu_tanh},
     {"gelu_pytorch_tanh", Activation::gelu_tanh},
     {"gelu_fast", Activation::gelu_tanh},
     {"gelu", Activation::gelu},
     {"relu", Activation::relu},
     {"silu", Activation::silu},
     {"swish", Activation::silu},
     {"tanh", Activation::tanh},
     {"sigmoid", Activation::sigmoid}}};

// The fields of a config.json, with errors that name file and field.
class Fields {
 public:
  Fields(const nlohmann::json& json, const std::filesystem::path& path, std::string prefix = "")
      : json_(json), path_(path), prefix_(std::move(prefix)) {
    if (!json_.is_object()) throw DataError("{}: {} is not a JSON object", path.string(), prefix_);
  }

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  int64_t integer(const char* key) const {
    constexpr int64_t kLargest = int64_t{1} << 40;  // so that small multiples stay in int64
    if (!at(key).is_number_integer()) wrong(key, "an integer is needed");
    const auto value = at(key).get<int64_t>();
    if (value < 0 || value > kLargest) wrong(key, "that is out of range");
    return value;
  }
  double number(const char* key) const {
    if (!at(key).is_number()) wrong(key, "a number is needed");
    return at(key).get<double>();
  }
  bool boolean(const char* key) const {
    if (!at(key).is_boolean()) wrong(key, "true or false is needed");
    return at(key).get<bool>();
  }
  std::string text(const char* key) const {
    if (!at(key).is_string()) wrong(key, "a text is needed");
    return at(key).get<std::string>();
  }
  // The same, with what `transformers` takes where the field is missing or null.
  int64_t integer(const char* key, int64_t otherwise) const {
    return has(key) ? integer(key) : otherwise;
  }
  double number(const char* key, double otherwise) const {
    return has(key) ? number(key) : otherwise;
  }
  bool boolean(const char* key, bool otherwise) const {
    return has(key) ? boolean(key) : otherwise;
  }
  std::string text(const char* key, const char* otherwise) const {
    return has(key) ? text(key) : otherwise;
  }
  Fields object(const char* key) const { return {at(key), path_, prefix_ + key + "."}; }

  // Refuses a value that would change what the model computes.
  void require(const char* key, const nlohmann::json& supported) const {
    if (has(key) && json_[key] != supported) {
      wrong(key, fmt::format("only {} is supported", supported.dump()).c_str());
    }
  }

  [[noreturn]] void wrong(const char* key, const char* what) const {
    throw DataError("{}: {}{} is {}; {}", path_.string(), prefix_, key,
                    json_.contains(key) ? json_[key].dump().substr(0, 80) : "missing", what);
  }

 private:
  const nlohmann::json& at(const char* key) const {
    if (!json_.contains(key)) wrong(key, "it is needed");
    return json_[key];
  }

  const nlohmann::json& json_;
  const std::filesystem::path& path_;
  std::string prefix_;
};

Activation activation_of(const Fields& fields, const char* key, const char* otherwise) {
  const std::string name = fields.text(key, otherwise);
  for (const auto& [theirs, activation] : kActivations) {
    if (name == theirs) return activation;
  }
  fields.wrong(key, "supported are gelu_new, gelu, relu, silu, tanh and sigmoid");
}

ModelConfig gpt2_config(const Fields& fields) {
  fields.require("scale_attn_weights", true);
  fields.require("scale_attn_by_inverse_layer_idx", false);
  fields.require("add_cross_attention", false);
  ModelConfig config;
  config.family = Family::gpt2;
  config.vocab_size = fields.integer("vocab_size", 50257);
  config.context_length = fields.integer("n_positions", 1024);
  config.num_layers = fields.integer("n_layer", 12);
  config.hidden_size = fields.integer("n_embd", 768);
  config.num_heads = config.num_kv_heads = fields.integer("n_head", 12);
  config.ffn_size = fields.integer("n_inner", 4 * config.hidden_size);
  config.activation = activation_of(fields, "activation_function", "gelu_new");
  config.dropout = static_cast<float>(fields.number("resid_pdrop", 0.1));
  config.norm_epsilon = static_cast<float>(fields.number("layer_norm_epsilon", 1e-5));
  config.tied_embeddings = fields.boolean("tie_word_embeddings", true);
  config.head_dim = config.num_heads > 0 ? config.hidden_size / config.num_heads : 0;
  return config;
}

// rope_parameters (transformers 5), or rope_scaling beside rope_theta (before).
void read_rope(const Fields& fields, ModelConfig& config) {
  const bool newer = fields.has("rope_parameters");
  config.rope_theta = fields.number("rope_theta", 10000);
  if (!newer && !fields.has("rope_scaling")) return;
  const Fields rope = fields.object(newer ? "rope_parameters" : "rope_scaling");
  config.rope_theta = rope.number("rope_theta", config.rope_theta);
  rope.require("partial_rotary_factor", 1.0);
  const char* type_key = rope.has("rope_type") || !rope.has("type") ? "rope_type" : "type";
  const std::string type = rope.text(type_key, "default");
  if (type == "default") return;
  if (type != "llama3") rope.wrong(type_key, "only default and llama3 are supported");
  config.rope_scaling = RopeScaling{rope.number("factor"), rope.number("low_freq_factor"),
                                    rope.number("high_freq_factor"),
                                    rope.integer("original_max_position_embeddings")};
}

ModelConfig llama_config(const Fields& fields) {
  fields.require("attention_bias", false);
  fields.require("mlp_bias", false);
  fields.require("partial_rotary_factor", 1.0);
  ModelConfig config;
  config.family = Family::llama;
  config.vocab_size = fields.integer("vocab_size", 32000);
  config.context_length = fields.integer("max_position_embeddings", 2048);
  config.num_layers = fields.integer("num_hidden_layers", 32);
  config.hidden_size = fields.integer("hidden_size", 4096);
  config.num_heads = fields.integer("num_attention_heads", 32);
  config.num_kv_heads = fields.integer("num_key_value_heads", config.num_heads);
  config.head_dim =
      fields.integer("head_dim", config.num_heads > 0 ? config.hidden_size / config.num_heads : 0);
  config.ffn_size = fields.integer("intermediate_size", 11008);
  config.activation = activation_of(fields, "hidden_act", "silu");
  config.dropout = static_cast<float>(fields.number("attention_dropout", 0));
  config.norm_epsilon = static_cast<float>(fields.number("rms_norm_eps", 1e-6));
  config.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  read_rope(fields, config);
  return config;
}

const char* name_of(Activation activation) {
  for (const auto& [theirs, ours] : kActivations) {
    if (ours == activation) return theirs;
  }
  throw DataError("Hugging Face has no name for the activation {}", kernels::name(activation));
}

nlohmann::json gpt2_to_hugging_face(const ModelConfig& c) {
  const nlohmann::json ours = to_json(c);
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"n_positions", c.context_length},
          {"n_ctx", c.context_length},
          {"n_embd", c.hidden_size},
          {"n_layer", c.num_layers},
          {"n_head", c.num_heads},
          {"n_inner", c.ffn_size},
          {"activation_function", name_of(c.activation)},
          {"resid_pdrop", ours["dropout"]},
          {"embd_pdrop", ours["dropout"]},
          {"attn_pdrop", ours["dropout"]},
          {"layer_norm_epsilon", ours["norm_epsilon"]},
          {"scale_attn_weights", true}};
}

// RoPE in both forms, so that any version of `transformers` finds it.
nlohmann::json llama_to_hugging_face(const ModelConfig& c) {
  const nlohmann::json ours = to_json(c);
  nlohmann::json rope = {{"rope_type", "default"}};
  if (c.rope_scaling) {
    rope = {{"rope_type", "llama3"},
            {"factor", c.rope_scaling->factor},
            {"low_freq_factor", c.rope_scaling->low_freq_factor},
            {"high_freq_factor", c.rope_scaling->high_freq_factor},
            {"original_max_position_embeddings", c.rope_scaling->original_context_length}};
  }
  const nlohmann::json scaling = c.rope_scaling ? rope : nlohmann::json();
  rope["rope_theta"] = c.rope_theta;
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"max_position_embeddings", c.context_length},
          {"hidden_size", c.hidden_size},
          {"num_hidden_layers", c.num_layers},
          {"num_attention_heads", c.num_heads},
          {"num_key_value_heads", c.num_kv_heads},
          {"head_dim", c.head_dim},
          {"intermediate_size", c.ffn_size},
          {"hidden_act", name_of(c.activation)},
          {"attention_dropout", ours["dropout"]},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"rms_norm_eps", ours["norm_epsilon"]},
          {"rope_theta", c.rope_theta},
          {"rope_scaling", scaling},
          {"rope_parameters", rope}};
}

}  // namespace

ModelConfig model_config_from_hugging_face(const nlohmann::json& json,
                                           const std::filesystem::path& path) {
  const Fields fields(json, path);
  const std::string type = fields.text("model_type");
  const bool gpt2 = type == "gpt2";
  if (!gpt2 && type != "llama") {
    fields.wrong("model_type", "only gpt2 and llama can be imported");
  }
  if (fields.has("architectures")) {
    const std::string supported = gpt2 ? "GPT2LMHeadModel" : "LlamaForCausalLM";
    if (json["architectures"] != nlohmann::json{supported}) {
      fields.wrong("architectures", fmt::format("only {} can be imported", supported).c_str());
    }
  }
  if (fields.has("quantization_config")) {
    fields.wrong("quantization_config", "import the weights before their quantization");
  }
  const ModelConfig config = gpt2 ? gpt2_config(fields) : llama_config(fields);
  try {
    validate(config);
  } catch (const UsageError& error) {
    throw DataError("{}: {}", path.string(), error.what());
  }
  return config;
}

nlohmann::json model_config_to_hugging_face(const ModelConfig& config) {
  nlohmann::json json =
      config.family == Family::gpt2 ? gpt2_to_hugging_face(config) : llama_to_hugging_face(config);
  json["vocab_size"] = config.vocab_size;
  json["tie_word_embeddings"] = config.tied_embeddings;
  json["dtype"] = json["torch_dtype"] = "float32";
  json["use_cache"] = true;
  return json;
}

}  // namespace lockstep
