#include "checkpoints/step_folder.h"
#include "core/check.h"

namespace lockstep {

nlohmann::json to_manifest(const CheckpointInfo& info, const char* kind) {
  return {{"kind", kind},
          {"step", info.step},
          {"model", to_json(info.model)},
          {"trainer_state", info.trainer_state},
          {"run_config", info.run_config}};
}

void require_kind(const SealedFile& file, const char* kind) {
  const nlohmann::json& manifest = file.manifest();
  const auto found = manifest.find("kind");
  const std::string is = found != manifest.end() && found->is_string() ? *found : "unknown";
  if (is != kind) {
    throw DataError("{} is of kind {}, and {} is needed here", file.path().string(), is, kind);
  }
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
  hdf5::write_attributes(hdf5::create_group(file, "trainer_state"), info.trainer_state);
  hdf5::write_attributes(hdf5::create_group(file, "run_config"), info.run_config);
}

}  // namespace lockstep
