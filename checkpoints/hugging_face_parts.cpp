#include <algorithm>
#include <string_view>

#include "checkpoints/hugging_face.h"
#include "core/check.h"

namespace lockstep {
namespace {

// "layers.3.ffn.up.weight" as {"3", "ffn.up.weight"}; {"", name} outside of a layer.
std::pair<std::string, std::string> layer_and_rest(const std::string& name) {
  constexpr std::string_view kPrefix = "layers.";
  if (!name.starts_with(kPrefix)) return {"", name};
  const size_t dot = name.find('.', kPrefix.size());
  return {name.substr(kPrefix.size(), dot - kPrefix.size()), name.substr(dot + 1)};
}

struct Renaming {
  const char *ours, *theirs;
  bool transposed = false;  // weights only
};

// Of names that end in .weight or .bias, without that end.
constexpr Renaming kGpt2[] = {{"embedding.tokens", "transformer.wte"},
                              {"embedding.positions", "transformer.wpe"},
                              {"final_norm", "transformer.ln_f"},
                              {"classifier", "lm_head"}};
constexpr Renaming kGpt2Layer[] = {{"attention_norm", "ln_1"},
                                   {"attention.qkv", "attn.c_attn", true},
                                   {"attention.output", "attn.c_proj", true},
                                   {"ffn_norm", "ln_2"},
                                   {"ffn.up", "mlp.c_fc", true},
                                   {"ffn.down", "mlp.c_proj", true}};
constexpr Renaming kLlama[] = {{"embedding.tokens", "model.embed_tokens"},
                               {"final_norm", "model.norm"},
                               {"classifier", "lm_head"}};
constexpr Renaming kLlamaLayer[] = {{"attention_norm", "input_layernorm"},
                                    {"attention.output", "self_attn.o_proj"},
                                    {"ffn_norm", "post_attention_layernorm"},
                                    {"ffn.down", "mlp.down_proj"}};

template <size_t N>
const Renaming& find(const Renaming (&table)[N], const std::string& name) {
  const auto* found = std::find_if(std::begin(table), std::end(table),
                                   [&](const Renaming& r) { return name == r.ours; });
  CHECK(found != std::end(table), "no Hugging Face name for {}", name);
  return *found;
}

// Several of their matrices stacked, each with its rows.
std::vector<HuggingFacePart> stacked(
    const std::string& prefix, int64_t columns,
    const std::vector<std::pair<const char*, int64_t>>& names_and_rows) {
  std::vector<HuggingFacePart> parts;
  int64_t begin = 0;
  for (const auto& [name, rows] : names_and_rows) {
    parts.push_back({prefix + name + ".weight", {rows, columns}, false, begin});
    begin += rows * columns;
  }
  return parts;
}

}  // namespace

int64_t HuggingFacePart::size() const {
  int64_t size = 1;
  for (const int64_t dim : shape) size *= dim;
  return size;
}

std::vector<HuggingFacePart> hugging_face_parts(const ModelConfig& config,
                                                const Parameter& parameter) {
  const auto [layer, rest] = layer_and_rest(parameter.name);
  const size_t dot = rest.rfind('.');
  const std::string stem = rest.substr(0, dot), end = rest.substr(dot);  // ".weight" or ".bias"
  const bool gpt2 = config.family == Family::gpt2;
  const std::string prefix =
      layer.empty() ? "" : (gpt2 ? "transformer.h." : "model.layers.") + layer + ".";
  if (stem == "attention.qkv" && !gpt2) {
    const int64_t queries = config.num_heads * config.head_dim;
    const int64_t keys = config.num_kv_heads * config.head_dim;
    return stacked(prefix + "self_attn.", config.hidden_size,
                   {{"q_proj", queries}, {"k_proj", keys}, {"v_proj", keys}});
  }
  if (stem == "ffn.gate_up") {
    return stacked(prefix + "mlp.", config.hidden_size,
                   {{"gate_proj", config.ffn_size}, {"up_proj", config.ffn_size}});
  }
  const Renaming& renaming = layer.empty()
                                 ? (gpt2 ? find(kGpt2, stem) : find(kLlama, stem))
                                 : (gpt2 ? find(kGpt2Layer, stem) : find(kLlamaLayer, stem));
  HuggingFacePart part{prefix + renaming.theirs + end, {}, false, 0};
  for (int i = 0; i < parameter.shape.rank(); i++) part.shape.push_back(parameter.shape[i]);
  part.transposed = renaming.transposed && end == ".weight";
  if (part.transposed) std::swap(part.shape[0], part.shape[1]);
  return {part};
}

namespace {

// to (columns, rows) = the transpose of from (rows, columns), by squares that fit the cache.
void transpose(const float* from, float* to, int64_t rows, int64_t columns) {
  constexpr int64_t kSide = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kSide) {
    for (int64_t c0 = 0; c0 < columns; c0 += kSide) {
      for (int64_t r = r0; r < std::min(rows, r0 + kSide); r++) {
        for (int64_t c = c0; c < std::min(columns, c0 + kSide); c++) {
          to[c * rows + r] = from[r * columns + c];
        }
      }
    }
  }
}

}  // namespace

void from_hugging_face(const HuggingFacePart& part, const float* theirs, float* ours) {
  if (part.transposed) return transpose(theirs, ours, part.shape[0], part.shape[1]);
  std::copy_n(theirs, part.size(), ours);
}

void to_hugging_face(const HuggingFacePart& part, const float* ours, float* theirs) {
  if (part.transposed) return transpose(ours, theirs, part.shape[1], part.shape[0]);
  std::copy_n(ours, part.size(), theirs);
}

}  // namespace lockstep
