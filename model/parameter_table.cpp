#include "model/parameter_table.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/random.h"
#include "core/thread_pool.h"

namespace lockstep {
namespace {

// Collects parameters in order, each behind the one before.
class Builder {
 public:
  explicit Builder(std::vector<Parameter>& parameters) : parameters_(parameters) {}

  void begin_group(int group, std::string prefix) {
    group_ = group;
    prefix_ = std::move(prefix);
  }
  void matrix(const std::string& name, int64_t outputs, int64_t inputs) {
    add(name, {outputs, inputs}, true);
  }
  void vector(const std::string& name, int64_t size) { add(name, {size}, false); }
  int64_t end() const { return end_; }

 private:
  void add(const std::string& name, Shape shape, bool decay) {
    parameters_.push_back({prefix_ + name, shape, decay, group_, end_});
    end_ = parameters_.back().end();
  }

  std::vector<Parameter>& parameters_;
  std::string prefix_;
  int group_ = 0;
  int64_t end_ = 0;
};

void add_layer(Builder& build, const ModelConfig& c) {
  const bool gpt2 = c.family == Family::gpt2;
  const auto norm = [&](const std::string& name) {
    build.vector(name + ".weight", c.hidden_size);
    if (gpt2) build.vector(name + ".bias", c.hidden_size);
  };
  const auto linear = [&](const std::string& name, int64_t outputs, int64_t inputs) {
    build.matrix(name + ".weight", outputs, inputs);
    if (gpt2) build.vector(name + ".bias", outputs);
  };
  norm("attention_norm");
  linear("attention.qkv", c.heads().packed(), c.hidden_size);
  linear("attention.output", c.hidden_size, c.num_heads * c.head_dim);
  norm("ffn_norm");
  if (gpt2) {
    linear("ffn.up", c.ffn_size, c.hidden_size);
  } else {
    linear("ffn.gate_up", 2 * c.ffn_size, c.hidden_size);
  }
  linear("ffn.down", c.hidden_size, c.ffn_size);
}

}  // namespace

ParameterTable::ParameterTable(const ModelConfig& config) {
  validate(config);
  const bool gpt2 = config.family == Family::gpt2;
  Builder build(parameters_);
  build.begin_group(0, "embedding.");
  build.matrix("tokens.weight", config.vocab_size, config.hidden_size);
  if (gpt2) build.matrix("positions.weight", config.context_length, config.hidden_size);
  const auto layers = static_cast<int>(config.num_layers);
  for (int layer = 0; layer < layers; layer++) {
    build.begin_group(1 + layer, fmt::format("layers.{}.", layer));
    add_layer(build, config);
  }
  build.begin_group(layers + 1, "");
  build.vector("final_norm.weight", config.hidden_size);
  if (gpt2) build.vector("final_norm.bias", config.hidden_size);
  if (!config.tied_embeddings) {
    build.matrix("classifier.weight", config.vocab_size, config.hidden_size);
  }
  size_ = build.end();
  num_groups_ = layers + 2;
}

Range ParameterTable::group_range(int group) const {
  CHECK(0 <= group && group < num_groups_, "group {} of {}", group, num_groups_);
  const auto first = std::lower_bound(
      parameters_.begin(), parameters_.end(), group,
      [](const Parameter& parameter, int wanted) { return parameter.group < wanted; });
  const auto last = std::upper_bound(
      first, parameters_.end(), group,
      [](int wanted, const Parameter& parameter) { return wanted < parameter.group; });
  return {first->offset, std::prev(last)->end()};
}

std::vector<Range> ParameterTable::group_ranges() const {
  std::vector<Range> ranges;
  for (int group = 0; group < num_groups_; group++) ranges.push_back(group_range(group));
  return ranges;
}

const Parameter* ParameterTable::find(std::string_view name) const {
  for (const Parameter& parameter : parameters_) {
    if (parameter.name == name) return &parameter;
  }
  return nullptr;
}

const Parameter& ParameterTable::at(std::string_view name) const {
  const Parameter* parameter = find(name);
  CHECK(parameter != nullptr, "no parameter {}", name);
  return *parameter;
}

Tensor ParameterTable::view(const Tensor& flat, const Parameter& parameter) const {
  CHECK(flat.size() == size_, "{} elements of {}", flat.size(), size_);
  return flat.reshape({size_}).slice(parameter.offset, parameter.end()).reshape(parameter.shape);
}

namespace {

// Writes normal numbers to out (n); quad q of four is a function of seed, parameter and q.
void fill_normal(float* out, int64_t n, float deviation, uint64_t seed, uint32_t parameter) {
  constexpr uint32_t kPurpose = 0x1417u;  // keeps apart from the numbers of other uses of the seed
  constexpr int64_t kGrain = 4096;
  const PhiloxKey key = philox_key(seed);
  parallel_for((n + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t quad = begin; quad < end; quad++) {
      const PhiloxCounter words = philox(
          {static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), parameter, kPurpose},
          key);
      const auto first = normal(words[0], words[1]), second = normal(words[2], words[3]);
      const float four[] = {first[0], first[1], second[0], second[1]};
      for (int64_t i = 4 * quad; i < std::min(n, 4 * quad + 4); i++) {
        out[i] = deviation * four[i % 4];
      }
    }
  });
}

}  // namespace

void initialize(const ParameterTable& table, const ModelConfig& config, uint64_t seed,
                const Tensor& flat) {
  constexpr float kDeviation = 0.02f;
  const float into_residual = kDeviation / std::sqrt(2.0f * static_cast<float>(config.num_layers));
  uint32_t index = 0;
  for (const Parameter& parameter : table.parameters()) {
    const Tensor values = table.view(flat, parameter);
    auto* out = values.as<float>();
    if (parameter.shape.rank() == 2) {
      const bool residual = parameter.name.ends_with("attention.output.weight") ||
                            parameter.name.ends_with("ffn.down.weight");
      fill_normal(out, values.size(), residual ? into_residual : kDeviation, seed, index);
    } else {
      std::fill_n(out, values.size(), parameter.name.ends_with(".bias") ? 0.0f : 1.0f);
    }
    index++;
  }
}

}  // namespace lockstep
