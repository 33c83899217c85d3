#include "checkpoints/model_file.h"

#include "checkpoints/binary_file.h"
#include "checkpoints/step_folder.h"
#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

std::string dataset_name(const Parameter& parameter) { return "/model/" + parameter.name; }

}  // namespace

void write_model_file(const fs::path& output, const CheckpointInfo& info,
                      const ParameterSource& source) {
  std::error_code error;
  if (fs::exists(output, error)) {
    throw UsageError("{} exists: remove it or name another output", output.string());
  }
  const ParameterTable table(info.model);
  SealedFileContent content;
  content.manifest = to_manifest(info, "model");
  content.texts = {{kTokenizerText, info.tokenizer_json}};
  for (const Parameter& parameter : table.parameters()) {
    content.data.emplace_back(dataset_name(parameter), parameter.shape);
  }
  Buffer values;
  content.data_bytes = [&](size_t i) {
    const Parameter& parameter = table.parameters()[i];
    const int64_t bytes = parameter.shape.size() * size_bytes(DType::fp32);
    if (values.size_bytes() < bytes) values = Buffer(bytes);
    const Tensor out = values.tensor(DType::fp32, parameter.shape);
    source(parameter, out);
    return std::span(static_cast<const std::byte*>(out.data()), static_cast<size_t>(bytes));
  };
  content.describe = [&](hid_t file) { describe_info(file, info, "model"); };

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

SealedFile open_model_file(const fs::path& path) {
  SealedFile file(path);
  require_kind(file, "model");
  const ParameterTable table(info_from(file).model);
  if (file.data().size() != table.parameters().size()) {
    throw DataError("{} holds {} tensors, its model has {}", path.string(), file.data().size(),
                    table.parameters().size());
  }
  for (size_t i = 0; i < file.data().size(); i++) {
    const Parameter& parameter = table.parameters()[i];
    const auto bytes = static_cast<uint64_t>(parameter.shape.size()) * sizeof(float);
    if (file.data()[i].name != dataset_name(parameter) || file.data()[i].size != bytes) {
      throw DataError("{}: {} stands where {} of shape {} should", path.string(),
                      file.data()[i].name, dataset_name(parameter), parameter.shape.to_string());
    }
  }
  return file;
}

}  // namespace lockstep
