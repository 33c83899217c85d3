#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "core/range.h"
#include "core/tensor.h"
#include "model/config.h"

namespace lockstep {

// One parameter tensor: a run of a flat buffer that holds all of them.
struct Parameter {
  std::string name;  // "layers.0.attention.qkv.weight"
  Shape shape;       // weights of linear layers are (outputs, inputs)
  bool decay;        // weight decay applies: matrices and embeddings, not gains and biases
  int group;         // 0: embeddings; 1..L: layers; L + 1: final norm and output layer
  int64_t offset;    // elements
  int64_t end() const { return offset + shape.size(); }
};

// The one list of a model's parameters, in the order of the flat buffer: read by initialisation,
// optimizer, reducer, checkpoints and tests. Groups are contiguous and in order.
//
//   embedding.tokens.weight (V, C)          embedding.positions.weight (T, C)          [gpt2]
//   layers.N.attention_norm.weight (C), .bias (C)                                      [bias: gpt2]
//   layers.N.attention.qkv.weight ((H + 2K) * D, C), .bias                             [bias: gpt2]
//   layers.N.attention.output.weight (C, H * D), .bias (C)                             [bias: gpt2]
//   layers.N.ffn_norm.weight (C), .bias (C)                                            [bias: gpt2]
//   layers.N.ffn.up.weight (F, C), .bias (F)                                           [gpt2]
//   layers.N.ffn.gate_up.weight (2F, C)                                                [llama]
//   layers.N.ffn.down.weight (C, F), .bias (C)                                         [bias: gpt2]
//   final_norm.weight (C), .bias (C)                                                   [bias: gpt2]
//   classifier.weight (V, C)                                              [unless tied_embeddings]
class ParameterTable {
 public:
  explicit ParameterTable(const ModelConfig& config);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  int64_t size() const { return size_; }  // elements of the flat buffer, without gaps
  int num_groups() const { return num_groups_; }
  Range group_range(int group) const;                  // in the flat buffer
  std::vector<Range> group_ranges() const;             // of all groups, in order
  const Parameter* find(std::string_view name) const;  // null when there is none
  const Parameter& at(std::string_view name) const;    // CHECKs
  // The view of one parameter in a flat buffer of size() elements.
  Tensor view(const Tensor& flat, const Parameter& parameter) const;

 private:
  std::vector<Parameter> parameters_;
  int64_t size_ = 0;
  int num_groups_ = 0;
};

// Writes initial weights into `flat` (fp32, size() elements), each number a function of seed,
// parameter and place alone. Matrices and embeddings: normal, standard deviation 0.02; the matrices
// that write into the residual stream (attention.output, ffn.down): 0.02 / sqrt(2 L), as GPT-2;
// gains 1, biases 0.
void initialize(const ParameterTable& table, const ModelConfig& config, uint64_t seed,
                const Tensor& flat);

}  // namespace lockstep
