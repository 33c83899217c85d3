#include "inference/weights.h"

#include <map>
#include <string>

#include "core/check.h"

namespace lockstep {

Weights::Weights(const Checkpoint& checkpoint, DType precision, Device device) {
  const auto& quantization = checkpoint.info().quantization;
  if (quantization && device != Device::cpu) {
    throw UsageError(
        "{} is quantized, and quantized weights are multiplied on the CPU only: add "
        "--device cpu",
        checkpoint.path().string());
  }
  const ParameterTable& table = checkpoint.table();
  std::map<std::string, int64_t> places;  // in whole_, elements
  int64_t count = 0;
  for (const Parameter& parameter : table.parameters()) {
    if (quantization && is_quantized(parameter)) continue;
    places[parameter.name] = count;
    count += parameter.shape.size();
  }
  whole_ = Buffer(precision, {count}, device);
  const auto whole = [&](const Parameter& parameter) {
    const auto found = places.find(parameter.name);
    if (found == places.end()) return Tensor();
    return whole_.tensor()
        .slice(found->second, found->second + parameter.shape.size())
        .reshape(parameter.shape);
  };
  std::map<std::string, kernels::QuantizedMatrix> matrices;
  if (!quantization) checkpoint.read(FlatKind::weights, 0, whole_.tensor());
  for (const Parameter& parameter : table.parameters()) {
    if (!quantization) break;
    if (!is_quantized(parameter)) {
      checkpoint.read(FlatKind::weights, parameter.offset, whole(parameter));
      continue;
    }
    matrices_.emplace_back(parameter.shape, *quantization);
    matrices[parameter.name] = matrices_.back().matrix();
    checkpoint.read(parameter, matrices_.back().matrix());
    bytes_read_a_token_ += matrices_.back().matrix().size_bytes();
  }
  parameters_ = parameter_views(table, whole, [&](const Parameter& parameter) {
    const auto found = matrices.find(parameter.name);
    return found == matrices.end() ? kernels::QuantizedMatrix() : found->second;
  });
  if (!checkpoint.info().model.tied_embeddings) count -= parameters_.tokens.size();
  if (!parameters_.positions.empty()) count -= parameters_.positions.size();
  bytes_read_a_token_ += count * size_bytes(precision);
}

}  // namespace lockstep
