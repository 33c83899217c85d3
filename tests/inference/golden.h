#pragma once
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "core/check.h"
#include "core/file.h"
#include "data/tokenizer.h"
#include "inference/sampling_options.h"
#include "model/parameter_table.h"

// Reads the golden data that tests/golden/inference/make.py makes.
namespace lockstep::testing {

// A folder that goes away with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lockstep-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// The options among a case's fields; others keep their defaults.
inline SamplingOptions sampling_options(const nlohmann::json& fields) {
  SamplingOptions o;
  const auto read = [&](const char* name, auto& field) {
    if (fields.contains(name)) fields.at(name).get_to(field);
  };
  read("temperature", o.temperature);
  read("top_k", o.top_k);
  read("top_p", o.top_p);
  read("min_p", o.min_p);
  read("typical_p", o.typical_p);
  read("repetition_penalty", o.repetition_penalty);
  read("presence_penalty", o.presence_penalty);
  read("frequency_penalty", o.frequency_penalty);
  read("no_repeat_ngram_size", o.no_repeat_ngram_size);
  read("forbid", o.forbid);
  read("forbid_first", o.forbid_first);
  read("force_first", o.force_first);
  for (const auto& bias : fields.value("logit_bias", nlohmann::json::array())) {
    o.logit_bias.push_back({bias[0], bias[1]});
  }
  return o;
}

struct Golden {
  nlohmann::json index;
  ModelConfig config;
  std::vector<float> weights;                    // flat, in the order of the table
  std::vector<float> logits_first, logits_last;  // (V)

  explicit Golden(const std::string& name)
      : index(nlohmann::json::parse(read_file(path(name + ".json")))),
        config(model_config_from_json(index.at("model"))),
        logits_first(static_cast<size_t>(config.vocab_size)),
        logits_last(static_cast<size_t>(config.vocab_size)) {
    const ParameterTable table(config);
    const std::string blob = read_file(path(name + ".bin"));
    CHECK(static_cast<int64_t>(blob.size()) == 2 * table.size() + 8 * config.vocab_size);
    std::vector<bf16> rounded(static_cast<size_t>(table.size()));
    const char* next = blob.data();
    const auto take = [&](auto& into) {
      std::memcpy(into.data(), next, into.size() * sizeof(into[0]));
      next += into.size() * sizeof(into[0]);
    };
    take(rounded);
    take(logits_first);
    take(logits_last);
    for (const bf16 value : rounded) weights.push_back(to_float(value));
  }

  static std::filesystem::path path(const std::string& file) {
    return std::filesystem::path(LOCKSTEP_GOLDEN) / "inference" / file;
  }

  std::string prompt() const { return index.at("prompt"); }
  std::vector<int32_t> greedy() const { return index.at("greedy"); }
  std::vector<int32_t> prompt_tokens() const {
    std::vector<int32_t> ids;
    for (const char c : prompt()) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  // As a checkpoint with the bytes tokenizer.
  Checkpoint checkpoint(const std::filesystem::path& run) {
    CheckpointInfo info;
    info.step = 1;
    info.model = config;
    info.tokenizer_json = Tokenizer::bytes().to_json();
    const auto size = static_cast<int64_t>(weights.size());
    std::vector<float> zeros(weights.size());
    const Tensor none(zeros.data(), DType::fp32, {size});
    CheckpointWriter writer(run, 0, 1, 0);
    writer.prepare(1);
    writer.save(info, {{{0, size}, Tensor(weights.data(), DType::fp32, {size}), none, none}});
    writer.wait();
    return Checkpoint::open(run);
  }
};

// The model of the golden data with a longer context: positions of gpt2 are repeated.
inline Golden with_context(Golden golden, int64_t context) {
  const ParameterTable before(golden.config);
  golden.config.context_length = context;
  const ParameterTable table(golden.config);
  std::vector<float> weights;
  for (const Parameter& parameter : table.parameters()) {
    const Parameter& old = before.at(parameter.name);
    for (int64_t i = 0; i < parameter.shape.size(); i++) {
      weights.push_back(golden.weights[old.offset + i % old.shape.size()]);
    }
  }
  golden.weights = weights;
  return golden;
}

}  // namespace lockstep::testing
