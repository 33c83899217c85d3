#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "core/check.h"
#include "model/config.h"

namespace lockstep {
namespace {

struct Preset {
  std::string name;
  ModelConfig config;
};

// Radford et al., "Language models are unsupervised multitask learners", 2019, Table 2, with the
// number of heads of the published checkpoints (64 channels a head).
ModelConfig gpt2(int64_t layers, int64_t heads, int64_t width) {
  ModelConfig config = family_defaults(Family::gpt2);
  config.context_length = 1024;
  config.num_layers = layers;
  config.num_heads = heads;
  config.hidden_size = width;
  fill_in_sizes(config);
  return config;
}

// Zhao et al., "GaLore", 2024: configs/llama_60m.json and llama_350m.json of its source.
ModelConfig galore(int64_t layers, int64_t heads, int64_t width, int64_t ffn) {
  ModelConfig config = family_defaults(Family::llama);
  config.context_length = 1024;
  config.num_layers = layers;
  config.num_heads = heads;
  config.hidden_size = width;
  config.ffn_size = ffn;
  config.norm_epsilon = 1e-6f;
  fill_in_sizes(config);
  return config;
}

// Llama 3.2 1B and 3B (Grattafiori et al., "The Llama 3 herd of models", 2024, and the published
// config.json): their shape, at the 8,192 tokens of context that Llama 3 is first trained with.
// The published models were then stretched to 131,072 tokens with RopeScaling.
ModelConfig llama32(int64_t layers, int64_t heads, int64_t width, int64_t head_dim) {
  ModelConfig config = family_defaults(Family::llama);
  config.context_length = 8192;
  config.num_layers = layers;
  config.num_heads = heads;
  config.num_kv_heads = 8;
  config.head_dim = head_dim;
  config.hidden_size = width;
  config.ffn_size = 8192;
  config.tied_embeddings = true;
  config.rope_theta = 500000;
  return config;
}

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"gpt2-124m", gpt2(12, 12, 768)},        {"gpt2-355m", gpt2(24, 16, 1024)},
      {"gpt2-774m", gpt2(36, 20, 1280)},       {"gpt2-1558m", gpt2(48, 25, 1600)},
      {"llama-60m", galore(8, 8, 512, 1376)},  {"llama-350m", galore(24, 16, 1024, 2736)},
      {"llama-1b", llama32(16, 32, 2048, 64)}, {"llama-3b", llama32(28, 24, 3072, 128)},
  };
  return all;
}

// Insertions, deletions and replacements that turn a into b (Levenshtein, 1966).
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); i++) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); j++) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

}  // namespace

const std::vector<std::string>& preset_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Preset& preset : presets()) all.push_back(preset.name);
    return all;
  }();
  return names;
}

ModelConfig preset(std::string_view name) {
  size_t nearest = std::numeric_limits<size_t>::max();
  std::string suggestion;
  for (const Preset& known : presets()) {
    if (known.name == name) return known.config;
    const size_t distance = edit_distance(name, known.name);
    if (distance < nearest) {
      nearest = distance;
      suggestion = known.name;
    } else if (distance == nearest) {
      suggestion += " or " + known.name;
    }
  }
  // A name that shares next to nothing with any of them is not a slip: show them all.
  if (nearest > 4) {
    suggestion = preset_names().front();
    for (size_t i = 1; i < preset_names().size(); i++) suggestion += ", " + preset_names()[i];
    throw UsageError("there is no model preset \"{}\"; there are {}", name, suggestion);
  }
  throw UsageError("there is no model preset \"{}\"; did you mean {}?", name, suggestion);
}

}  // namespace lockstep
