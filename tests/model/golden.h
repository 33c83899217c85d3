#pragma once
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/file.h"
#include "core/tensor.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "model/transformer.h"

// Reads the golden data that tests/golden/model/make.py makes.
namespace lockstep::testing {

// Tokens and targets that a Batch views.
class TokenBatch {
 public:
  TokenBatch(std::vector<int32_t> tokens, std::vector<int32_t> targets, int64_t sequences)
      : tokens_(std::move(tokens)), targets_(std::move(targets)), sequences_(sequences) {}
  // From [sequence][token]; rows one longer than the batch hold their own targets.
  static TokenBatch from_json(const nlohmann::json& tokens, const nlohmann::json& targets) {
    std::vector<int32_t> flat_tokens, flat_targets;
    for (const auto& row : tokens) flat_tokens.insert(flat_tokens.end(), row.begin(), row.end());
    for (const auto& row : targets) flat_targets.insert(flat_targets.end(), row.begin(), row.end());
    return {std::move(flat_tokens), std::move(flat_targets), static_cast<int64_t>(tokens.size())};
  }

  // A view of sequences [begin, end); this must outlive it.
  Batch slice(int64_t begin, int64_t end, uint64_t step = 0) {
    return whole(step).slice(begin, end);
  }
  // All have the step of the last view.
  Batch whole(uint64_t step = 0) {
    step_ = step;
    const Shape shape = {sequences_, length()};
    return {.tokens = Tensor(tokens_.data(), DType::int32, shape),
            .targets = Tensor(targets_.data(), DType::int32, shape),
            .step = &step_};
  }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<int32_t>& targets() const { return targets_; }
  int64_t sequences() const { return sequences_; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()) / sequences_; }
  int64_t counted() const {
    return std::count_if(targets_.begin(), targets_.end(), [](int32_t t) { return t >= 0; });
  }

 private:
  std::vector<int32_t> tokens_, targets_;
  int64_t sequences_;
  uint64_t step_ = 0;
};

// On the CPU: the forward pass of a training step. Returns the sum of the losses.
inline double forward(Transformer& model, const Batch& batch, float gradient_scale) {
  double loss = 0;
  model.forward(batch, &gradient_scale, &loss);
  return loss;
}

struct Golden {
  nlohmann::json index;
  ModelConfig config;
  std::vector<float> weights, gradients;  // flat, in the order of the table
  std::vector<float> logits;              // (prompt, V)

  // `folder`/NAME.json and NAME.bin.
  Golden(const std::string& folder, const std::string& name)
      : index(nlohmann::json::parse(read_file(folder + "/" + name + ".json"))),
        config(model_config_from_json(index.at("model"))) {
    const ParameterTable table(config);
    check_tensors(table);
    const std::string blob = read_file(folder + "/" + name + ".bin");
    const int64_t logits_size = static_cast<int64_t>(index.at("prompt").size()) * config.vocab_size;
    CHECK(static_cast<int64_t>(blob.size()) == 6 * table.size() + 4 * logits_size);
    std::vector<bf16> rounded(table.size());
    gradients.resize(table.size());
    logits.resize(logits_size);
    const char* next = blob.data();
    const auto take = [&](auto& into) {
      std::memcpy(into.data(), next, into.size() * sizeof(into[0]));
      next += into.size() * sizeof(into[0]);
    };
    take(rounded);
    take(gradients);
    take(logits);
    for (const bf16 value : rounded) weights.push_back(to_float(value));
  }

  TokenBatch batch() const {
    return TokenBatch::from_json(index.at("batch").at("tokens"), index.at("batch").at("targets"));
  }
  double loss() const { return index.at("loss"); }

 private:
  void check_tensors(const ParameterTable& table) const {
    const auto& tensors = index.at("tensors");
    CHECK(tensors.size() == table.parameters().size());
    for (size_t i = 0; i < tensors.size(); i++) {
      const Parameter& parameter = table.parameters()[i];
      CHECK(tensors[i].at("name") == parameter.name, "{}", parameter.name);
      const std::vector<int64_t> shape = tensors[i].at("shape");
      CHECK(static_cast<int>(shape.size()) == parameter.shape.rank(), "{}", parameter.name);
      for (int d = 0; d < parameter.shape.rank(); d++) CHECK(shape[d] == parameter.shape[d]);
    }
  }
};

}  // namespace lockstep::testing
