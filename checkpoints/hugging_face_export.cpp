#include "checkpoints/binary_file.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/hugging_face.h"
#include "checkpoints/safetensors.h"
#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

struct SpecialToken {
  std::string text;
  int64_t id = -1;  // none
};

// The first of `names` that the tokenizer has as an added token.
SpecialToken find_special(const nlohmann::json& tokenizer,
                          std::initializer_list<const char*> names) {
  if (!tokenizer.is_object() || !tokenizer.contains("added_tokens")) return {};
  for (const char* name : names) {
    for (const nlohmann::json& token : tokenizer["added_tokens"]) {
      if (token.is_object() && token.contains("content") && token["content"] == name &&
          token.contains("id") && token["id"].is_number_integer()) {
        return {name, token["id"].get<int64_t>()};
      }
    }
  }
  return {};
}

void write_json(const fs::path& path, const nlohmann::json& json) {
  write_file_atomically(path, json.dump(2) + "\n");
}

// config.json, generation_config.json and the tokenizer's files.
void write_descriptions(const fs::path& folder, const CheckpointInfo& info) {
  const nlohmann::json tokenizer =
      nlohmann::json::parse(info.tokenizer_json, nullptr, /*allow_exceptions=*/false);
  const SpecialToken end = find_special(tokenizer, {"<|endoftext|>", "<|end_of_text|>", "</s>"});
  SpecialToken begin = find_special(tokenizer, {"<|begin_of_text|>", "<s>"});
  if (begin.id < 0) begin = end;

  nlohmann::json config = model_config_to_hugging_face(info.model);
  nlohmann::json generation = {{"_from_model_config", true}};
  nlohmann::json tokenizer_config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                     {"model_max_length", info.model.context_length},
                                     {"clean_up_tokenization_spaces", false}};
  const auto set = [&](const char* name, const SpecialToken& token) {
    // Null where there is none: else `transformers` takes ids of its own.
    const nlohmann::json id = token.id < 0 ? nlohmann::json() : nlohmann::json(token.id);
    config[name + std::string("_token_id")] = generation[name + std::string("_token_id")] = id;
    if (token.id >= 0) tokenizer_config[name + std::string("_token")] = token.text;
  };
  set("bos", begin);
  set("eos", end);
  write_json(folder / "config.json", config);
  write_json(folder / "generation_config.json", generation);
  if (info.tokenizer_json.empty()) return;
  write_json(folder / "tokenizer_config.json", tokenizer_config);
  write_file_atomically(folder / "tokenizer.json", info.tokenizer_json);
}

void write_weights(const fs::path& path, const Checkpoint& checkpoint) {
  const ModelConfig& model = checkpoint.info().model;
  std::vector<SafetensorsWriter::Item> items;
  for (const Parameter& parameter : checkpoint.table().parameters()) {
    for (const HuggingFacePart& part : hugging_face_parts(model, parameter)) {
      items.push_back({part.name, part.shape});
    }
  }
  SafetensorsWriter file(path, items);
  for (const Parameter& parameter : checkpoint.table().parameters()) {
    for (const HuggingFacePart& part : hugging_face_parts(model, parameter)) {
      const auto size = static_cast<size_t>(part.size());
      std::vector<float> ours(size), theirs(size);
      checkpoint.read(FlatKind::weights, parameter.offset + part.begin,
                      Tensor(ours.data(), DType::fp32, {part.size()}));
      to_hugging_face(part, ours.data(), theirs.data());
      file.append(theirs);
    }
  }
  file.finish();
}

}  // namespace

void export_hugging_face(const Checkpoint& checkpoint, const fs::path& output) {
  checkpoint.require_whole_weights("an export");
  std::error_code error;
  if (fs::exists(output, error) &&
      !(fs::is_directory(output, error) && fs::is_empty(output, error))) {
    throw UsageError("{} exists and is not an empty folder: remove it or name another output",
                     output.string());
  }
  fs::path temporary = output.has_filename() ? output : output.parent_path();
  temporary += ".partial";
  try {
    fs::remove_all(temporary);
    fs::create_directory(temporary);
    write_descriptions(temporary, checkpoint.info());
    write_weights(temporary / "model.safetensors", checkpoint);
    flush_to_disk(temporary);
    fs::remove(output, error);  // if it is an empty folder
    rename_path(temporary, output);
  } catch (const fs::filesystem_error& failure) {
    throw DataError("cannot write {}: {}", temporary.string(), failure.code().message());
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace lockstep
