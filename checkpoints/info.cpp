#include "checkpoints/step_folder.h"
#include "core/check.h"

namespace lockstep {

namespace {

std::string kind_of(const SealedFile& file) {
  const nlohmann::json& manifest = file.manifest();
  const auto found = manifest.find("kind");
  return found != manifest.end() && found->is_string() ? *found : "unknown";
}

nlohmann::json to_json(const Quantization& q) {
  return {{"bits", q.bits}, {"group_size", q.group_size}, {"calibrated", q.calibrated}};
}

Quantization quantization_from(const nlohmann::json& json, const ModelConfig& model) {
  const auto number = [&](const char* key) -> int64_t {
    const auto found = json.is_object() ? json.find(key) : json.end();
    if (found == json.end() || !found->is_number_integer()) {
      throw DataError("the manifest's quantization lacks {}", key);
    }
    return found->get<int64_t>();
  };
  Quantization quantization;
  const int64_t bits = number("bits");
  quantization.bits = bits == 8 || bits == 4 ? static_cast<int>(bits) : 0;
  quantization.group_size = number("group_size");
  const auto calibrated = json.find("calibrated");
  quantization.calibrated =
      calibrated != json.end() && calibrated->is_boolean() && calibrated->get<bool>();
  validate(quantization, model);
  return quantization;
}

}  // namespace

nlohmann::json to_manifest(const CheckpointInfo& info, const char* kind) {
  nlohmann::json manifest{{"kind", kind},
                          {"step", info.step},
                          {"model", to_json(info.model)},
                          {"trainer_state", info.trainer_state},
                          {"run_config", info.run_config}};
  if (info.quantization) manifest["quantization"] = to_json(*info.quantization);
  return manifest;
}

void require_kind(const SealedFile& file, const char* kind) {
  const std::string is = kind_of(file);
  if (is != kind) {
    throw DataError("{} is of kind {}, and {} is needed here", file.path().string(), is, kind);
  }
}

void require_model(const SealedFile& file) {
  if (kind_of(file) != "quantized") require_kind(file, "model");
}

CheckpointInfo info_from(const SealedFile& file) {
  const nlohmann::json& manifest = file.manifest();
  const auto field = [&](const char* key) -> const nlohmann::json& {
    const auto found = manifest.find(key);
    if (found == manifest.end()) {
      throw DataError("{}: the manifest lacks {}", file.path().string(), key);
    }
    return *found;
  };
  CheckpointInfo info;
  try {
    info.model = model_config_from_json(field("model"));
    validate(info.model);
    if (kind_of(file) == "quantized") {
      info.quantization = quantization_from(field("quantization"), info.model);
    }
  } catch (const Error& error) {
    throw DataError("{}: {}", file.path().string(), error.what());
  }
  const nlohmann::json& step = field("step");
  info.trainer_state = field("trainer_state");
  info.run_config = field("run_config");
  if (!step.is_number_integer() || step.get<int64_t>() < 0 || !info.trainer_state.is_object() ||
      !info.run_config.is_object()) {
    throw DataError("{}: step, trainer_state or run_config is of the wrong type",
                    file.path().string());
  }
  info.step = step.get<int64_t>();
  info.tokenizer_json = file.text(kTokenizerText);
  return info;
}

void describe_info(hid_t file, const CheckpointInfo& info, const char* kind) {
  hdf5::write_attributes(file, {{"format", std::string("lockstep ") + kind},
                                {"format_version", kFormatVersion},
                                {"step", info.step}});
  hdf5::write_attributes(hdf5::open_group(file, "model"), to_json(info.model));
  if (info.quantization) {
    hdf5::write_attributes(hdf5::create_group(file, "quantization"), to_json(*info.quantization));
  }
  hdf5::write_attributes(hdf5::create_group(file, "trainer_state"), info.trainer_state);
  hdf5::write_attributes(hdf5::create_group(file, "run_config"), info.run_config);
}

}  // namespace lockstep
