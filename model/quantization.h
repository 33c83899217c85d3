#pragma once
#include <cstdint>
#include <string>

#include "core/tensor.h"
#include "kernels/quantized_matmul.h"
#include "model/config.h"
#include "model/parameter_table.h"

// Which weights of a model are quantized, and the memory that holds them.
namespace lockstep {

struct Quantization {
  int bits = 8;              // 8 or 4
  int64_t group_size = 128;  // inputs that share a scale and a zero
  bool calibrated = false;   // rounded with regard to activations, not each number by itself
  friend bool operator==(const Quantization&, const Quantization&) = default;
};

// The matrices of the layers. Embeddings, norms, biases and the output layer stay whole.
bool is_quantized(const Parameter& parameter);

// Throws UsageError, naming the first matrix that does not fit and the sizes that fit all, unless
// the kernel has groups of this size and they divide the inputs of every matrix.
void validate(const Quantization& quantization, const ModelConfig& config);

// Owns one quantized matrix, zeroed. Movable only.
class QuantizedBuffer {
 public:
  // `shape` (outputs, inputs), which the groups divide.
  QuantizedBuffer(const Shape& shape, const Quantization& quantization);
  const kernels::QuantizedMatrix& matrix() const { return matrix_; }

 private:
  Buffer words_, scales_, zeros_;
  kernels::QuantizedMatrix matrix_;
};

}  // namespace lockstep
