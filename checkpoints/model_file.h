#pragma once
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/sealed_file.h"

// model.h5: one file with weights, whole or quantized, configuration and tokenizer, without
// optimizer state.
namespace lockstep {

// Fills `values` (fp32, of the parameter's shape).
using ParameterSource = std::function<void(const Parameter& parameter, const Tensor& values)>;

// Writes the file under a temporary name and renames it. Parameters are asked for one by one, in
// the order of the table. Throws UsageError when `output` exists, DataError when it cannot be
// written.
void write_model_file(const std::filesystem::path& output, const CheckpointInfo& info,
                      const ParameterSource& source);

// Where a parameter stands in the data of a model's file: itself, or words, scales and zeros.
struct ParameterData {
  const Parameter* parameter;  // of the table
  size_t first;                // data()[first], and two more if it is quantized
  bool quantized;
};

// The data of a model's file, in order.
struct ModelLayout {
  ModelLayout(const ParameterTable& table, const std::optional<Quantization>& quantization);
  std::vector<DataSpec> data;
  std::vector<ParameterData> parameters;  // in the order of the table
};

// Opens one and checks that it holds every parameter of its configuration, in order.
SealedFile open_model_file(const std::filesystem::path& path);

}  // namespace lockstep
