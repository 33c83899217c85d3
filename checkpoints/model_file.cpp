#include "checkpoints/model_file.h"

#include "checkpoints/binary_file.h"
#include "checkpoints/step_folder.h"
#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

std::string dataset_name(const Parameter& parameter) { return "/model/" + parameter.name; }

std::span<const std::byte> bytes_of(const void* data, uint64_t size) {
  return {static_cast<const std::byte*>(data), size};
}

// Writes under a temporary name, and renames.
void write_whole(const fs::path& output, const SealedFileContent& content) {
  std::error_code error;
  if (fs::exists(output, error)) {
    throw UsageError("{} exists: remove it or name another output", output.string());
  }
  const fs::path temporary = output.string() + ".partial";
  try {
    write_sealed_file(temporary, content);
    rename_path(temporary, output);
  } catch (...) {
    fs::remove(temporary, error);
    throw;
  }
  flush_to_disk(output.has_parent_path() ? output.parent_path() : fs::path("."));
}

const char* kind_of(const CheckpointInfo& info) {
  return info.quantization ? "quantized" : "model";
}

SealedFileContent content_of(const CheckpointInfo& info, const ModelLayout& layout) {
  SealedFileContent content;
  content.manifest = to_manifest(info, kind_of(info));
  content.texts = {{kTokenizerText, info.tokenizer_json}};
  content.data = layout.data;
  content.describe = [&info](hid_t file) { describe_info(file, info, kind_of(info)); };
  return content;
}

// Values of a whole parameter, in `memory` until the next call.
std::span<const std::byte> whole_values(const ParameterSource& source, const Parameter& parameter,
                                        Buffer& memory) {
  const int64_t bytes = parameter.shape.size() * size_bytes(DType::fp32);
  if (memory.size_bytes() < bytes) memory = Buffer(bytes);
  const Tensor out = memory.tensor(DType::fp32, parameter.shape);
  source(parameter, out);
  return bytes_of(out.data(), static_cast<uint64_t>(bytes));
}

}  // namespace

ModelLayout::ModelLayout(const ParameterTable& table,
                         const std::optional<Quantization>& quantization) {
  using hdf5::NumberType;
  for (const Parameter& parameter : table.parameters()) {
    const std::string name = dataset_name(parameter);
    const bool quantized = quantization && is_quantized(parameter);
    parameters.push_back({&parameter, data.size(), quantized});
    if (!quantized) {
      data.push_back({name, parameter.shape});
      continue;
    }
    const int64_t outputs = parameter.shape[0], inputs = parameter.shape[1];
    const int64_t groups = inputs / quantization->group_size;
    data.push_back(
        {name + "/words", {outputs, inputs * quantization->bits / 32}, NumberType::uint32});
    data.push_back({name + "/scales", {outputs, groups}, NumberType::float32});
    data.push_back({name + "/zeros", {outputs, groups}, NumberType::uint8});
  }
}

void write_model_file(const fs::path& output, const CheckpointInfo& info,
                      const ParameterSource& source) {
  const ParameterTable table(info.model);
  const ModelLayout layout(table, std::nullopt);
  SealedFileContent content = content_of(info, layout);
  Buffer values;
  content.data_bytes = [&](size_t i) {
    return whole_values(source, *layout.parameters[i].parameter, values);
  };
  write_whole(output, content);
}

void write_quantized(const Checkpoint& checkpoint, const Quantization& quantization,
                     const std::vector<QuantizedBuffer>& matrices, const fs::path& output) {
  CheckpointInfo info = checkpoint.info();
  info.quantization = quantization;
  const ParameterTable& table = checkpoint.table();
  const ModelLayout layout(table, quantization);
  SealedFileContent content = content_of(info, layout);
  const ParameterSource source = [&](const Parameter& parameter, const Tensor& values) {
    checkpoint.read(FlatKind::weights, parameter.offset, values);
  };
  Buffer values;
  auto place = layout.parameters.begin();
  auto matrix = matrices.begin();
  content.data_bytes = [&](size_t i) {
    const size_t part = i - place->first;
    if (!place->quantized) return whole_values(source, *place++->parameter, values);
    const kernels::QuantizedMatrix& m = matrix->matrix();
    const uint64_t size = layout.data[i].size_bytes();
    if (part == 0) return bytes_of(m.words, size);
    if (part == 1) return bytes_of(m.scales, size);
    ++place, ++matrix;
    return bytes_of(m.zeros, size);
  };
  write_whole(output, content);
}

SealedFile open_model_file(const fs::path& path) {
  SealedFile file(path);
  require_model(file);
  const CheckpointInfo info = info_from(file);
  const ParameterTable table(info.model);
  const std::vector<DataSpec> expected = ModelLayout(table, info.quantization).data;
  if (file.data().size() != expected.size()) {
    throw DataError("{} holds {} tensors, its model has {}", path.string(), file.data().size(),
                    expected.size());
  }
  for (size_t i = 0; i < expected.size(); i++) {
    if (file.data()[i].name != expected[i].name ||
        file.data()[i].size != expected[i].size_bytes()) {
      throw DataError("{}: {} stands where {} of shape {} should", path.string(),
                      file.data()[i].name, expected[i].name, expected[i].shape.to_string());
    }
  }
  return file;
}

}  // namespace lockstep
