#include "model/quantization.h"

#include <fmt/ranges.h>

#include <vector>

namespace lockstep {

bool is_quantized(const Parameter& parameter) {
  return parameter.shape.rank() == 2 && parameter.name.starts_with("layers.");
}

namespace {

// Of the sizes that are asked for most.
std::vector<int64_t> sizes_that_fit(const ParameterTable& table) {
  std::vector<int64_t> sizes;
  for (const int64_t size : {32, 64, 128, 256, 512, 1024}) {
    bool fits = true;
    for (const Parameter& parameter : table.parameters()) {
      fits = fits && (!is_quantized(parameter) || parameter.shape[1] % size == 0);
    }
    if (fits) sizes.push_back(size);
  }
  return sizes;
}

}  // namespace

void validate(const Quantization& quantization, const ModelConfig& config) {
  const int64_t size = quantization.group_size;
  if (quantization.bits != 8 && quantization.bits != 4) {
    throw UsageError("a weight can have 8 bits or 4, and not {}", quantization.bits);
  }
  if (!kernels::is_group_size(size)) {
    throw UsageError("groups of {} weights: a group can have 32, 64 or a multiple of 128", size);
  }
  const ParameterTable table(config);
  for (const Parameter& parameter : table.parameters()) {
    if (!is_quantized(parameter) || parameter.shape[1] % size == 0) continue;
    const std::vector<int64_t> sizes = sizes_that_fit(table);
    throw UsageError("--group-size {} does not divide the {} inputs of {}; {}", size,
                     parameter.shape[1], parameter.name,
                     sizes.empty() ? "no size does for this model"
                                   : fmt::format("groups of {} do", fmt::join(sizes, ", ")));
  }
}

QuantizedBuffer::QuantizedBuffer(const Shape& shape, const Quantization& quantization) {
  matrix_.outputs = shape[0];
  matrix_.inputs = shape[1];
  matrix_.bits = quantization.bits;
  matrix_.group_size = quantization.group_size;
  const int64_t groups = matrix_.outputs * matrix_.groups();
  words_ = Buffer(matrix_.outputs * matrix_.words_of_row() * int64_t{sizeof(uint32_t)});
  scales_ = Buffer(DType::fp32, {groups});
  zeros_ = Buffer(groups);
  matrix_.words = static_cast<uint32_t*>(words_.tensor(DType::int32, {0}).data());
  matrix_.scales = scales_.tensor().as<float>();
  matrix_.zeros = static_cast<uint8_t*>(zeros_.tensor(DType::int32, {0}).data());
}

}  // namespace lockstep
