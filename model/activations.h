#pragma once
#include <vector>

#include "core/tensor.h"
#include "model/config.h"
#include "model/layer.h"

// The plan of the memory that holds one micro-batch's activations and their gradients.
namespace lockstep {

// Hands out tensors one behind the other, each from a cache line on. Without a buffer it only
// measures: the tensors are empty.
class Arena {
 public:
  Arena() = default;
  explicit Arena(const Buffer& buffer) : buffer_(&buffer) {}
  Tensor take(DType dtype, Shape shape);
  int64_t size_bytes() const { return end_; }  // taken so far

 private:
  const Buffer* buffer_ = nullptr;
  int64_t end_ = 0;
};

// What stays until backward reads it.
enum class Keep {
  nothing,       // no backward: one set of layer activations, the residual stream in place
  layer_inputs,  // `recompute`: each layer's input; the rest is one set, made again in backward
  everything,
};

struct Activations {
  std::vector<LayerActivations> layers;  // L
  Tensor final_mean, final_scale;        // (N) fp32, of the final norm; final_mean: gpt2
  Tensor final_normed;                   // (B, T, C)  read by the classifier only
  Tensor losses;                         // (N) fp32
  // Unless Keep::nothing. From forward to backward, gradients.branch is that of final_normed.
  LayerGradients gradients;

  Tensor final_input() const { return layers.back().output; }  // (B, T, C), read by the final norm
};

// Plans the tensors for B sequences of T tokens in compute precision `dtype`. Fewer or shorter
// sequences never need more memory. Does not allocate when `activations` was planned before.
void plan(Activations& activations, Arena& arena, const ModelConfig& config, DType dtype, Keep keep,
          int64_t sequences, int64_t length);

// One layer's activations but `input` and `output`.
LayerActivations plan_layer(Arena& arena, const ModelConfig& config, DType dtype, int64_t sequences,
                            int64_t length);

}  // namespace lockstep
