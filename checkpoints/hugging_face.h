#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/parameter_table.h"

// How models of Hugging Face's `transformers` name and lay out what ours hold.
namespace lockstep {

// The configuration of a config.json; `path` names it in errors. Throws DataError, naming the
// field, for an architecture or a value that our models do not have.
ModelConfig model_config_from_hugging_face(const nlohmann::json& config,
                                           const std::filesystem::path& path);
// config.json of a model, without the ids of special tokens. Throws DataError for a configuration
// that `transformers` has no model for.
nlohmann::json model_config_to_hugging_face(const ModelConfig& config);

// A tensor of theirs as rows of one of our parameters.
struct HuggingFacePart {
  std::string name;            // "transformer.h.0.attn.c_attn.weight"
  std::vector<int64_t> shape;  // theirs
  bool transposed;             // stored as (inputs, outputs): Conv1D of GPT-2
  int64_t begin;               // elements of our parameter, row-major, that it starts at
  int64_t size() const;        // elements
};

// The tensors that make up a parameter, in the order of its rows.
//
//   gpt2   linear layers are stored transposed; c_attn holds queries, keys and values as ours does
//   llama  q_proj, k_proj and v_proj stacked are our qkv; gate_proj and up_proj our gate_up
std::vector<HuggingFacePart> hugging_face_parts(const ModelConfig& config,
                                                const Parameter& parameter);

// values (of the part's place in our parameter) from the tensor's, and back.
void from_hugging_face(const HuggingFacePart& part, const float* theirs, float* ours);
void to_hugging_face(const HuggingFacePart& part, const float* ours, float* theirs);

}  // namespace lockstep
