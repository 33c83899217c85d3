#pragma once
#include <vector>

#include "checkpoints/checkpoint.h"
#include "core/tensor.h"
#include "model/parameter_views.h"
#include "model/quantization.h"

namespace lockstep {

// The weights of a checkpoint in memory, for forward passes: in compute precision, or quantized as
// the checkpoint holds them. Movable only.
class Weights {
 public:
  // Throws UsageError for quantized weights on a GPU.
  Weights(const Checkpoint& checkpoint, DType precision, Device device = Device::cpu);

  const ModelParameters& parameters() const { return parameters_; }
  // Of the weights that a pass over one token reads: all but the rows of tables that it looks up.
  int64_t bytes_read_a_token() const { return bytes_read_a_token_; }

 private:
  Buffer whole_;  // the parameters that are not quantized, one behind the other
  std::vector<QuantizedBuffer> matrices_;
  ModelParameters parameters_;
  int64_t bytes_read_a_token_ = 0;
};

}  // namespace lockstep
