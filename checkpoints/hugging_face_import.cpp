#include <algorithm>
#include <cstring>
#include <set>

#include "checkpoints/checkpoint.h"
#include "checkpoints/hugging_face.h"
#include "checkpoints/model_file.h"
#include "checkpoints/safetensors.h"
#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// One more than the largest id that the tokenizer gives.
int64_t ids_of_tokenizer(const std::string& tokenizer_json) {
  const nlohmann::json json =
      nlohmann::json::parse(tokenizer_json, nullptr, /*allow_exceptions=*/false);
  int64_t largest = -1;
  const auto take = [&](const nlohmann::json& id) {
    constexpr int64_t kNoMore = int64_t{1} << 40;
    if (id.is_number_integer()) largest = std::max(largest, std::min(id.get<int64_t>(), kNoMore));
  };
  if (!json.is_object()) return 0;
  if (json.contains("/model/vocab"_json_pointer)) {
    const nlohmann::json& vocab = json["/model/vocab"_json_pointer];
    if (vocab.is_object()) std::for_each(vocab.begin(), vocab.end(), take);
  }
  if (json.contains("added_tokens") && json["added_tokens"].is_array()) {
    for (const nlohmann::json& token : json["added_tokens"]) {
      if (token.is_object() && token.contains("id")) take(token["id"]);
    }
  }
  return largest + 1;
}

class Import {
 public:
  Import(const fs::path& folder, const std::string& tokenizer_json)
      : folder_(folder), tensors_(folder) {
    const fs::path path = folder / "config.json";
    const nlohmann::json json =
        nlohmann::json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) throw DataError("{} is not JSON", path.string());
    info_.model = model_config_from_hugging_face(json, path);
    info_.tokenizer_json = tokenizer_json;
    const int64_t ids = ids_of_tokenizer(tokenizer_json);
    if (ids > info_.model.vocab_size) {
      throw DataError(
          "{}: vocab_size is {}, and the tokenizer gives ids up to {}: do both belong together?",
          path.string(), info_.model.vocab_size, ids - 1);
    }
    check_tensors();
  }

  void write(const fs::path& output) const {
    write_model_file(output, info_, [&](const Parameter& parameter, const Tensor& values) {
      for (const HuggingFacePart& part : hugging_face_parts(info_.model, parameter)) {
        const std::vector<float> theirs = tensors_.read(stored_name(part.name));
        from_hugging_face(part, theirs.data(), values.as<float>() + part.begin);
      }
    });
  }

 private:
  // GPT-2's weights are published with and without the name of the part that holds the layers.
  std::string stored_name(const std::string& name) const {
    constexpr std::string_view kPrefix = "transformer.";
    if (!name.starts_with(kPrefix) || tensors_.contains(name)) return name;
    return name.substr(kPrefix.size());
  }

  // Every tensor that is needed is there with its shape, and no other is.
  void check_tensors() const {
    std::set<std::string> used;
    const ParameterTable table(info_.model);
    for (const Parameter& parameter : table.parameters()) {
      for (const HuggingFacePart& part : hugging_face_parts(info_.model, parameter)) {
        const std::string name = stored_name(part.name);
        if (!tensors_.contains(name)) {
          throw DataError("{} holds no tensor {}, which the model of config.json needs",
                          folder_.string(), part.name);
        }
        const std::vector<int64_t>& shape = tensors_.entry(name).shape;
        if (shape != part.shape) {
          throw DataError("{}: {} has shape {}, and config.json makes it {}",
                          tensors_.path_of(name).string(), name, shape_to_string(shape),
                          shape_to_string(part.shape));
        }
        used.insert(name);
      }
    }
    for (const std::string& name : tensors_.names()) {
      if (used.contains(name) || is_no_parameter(name)) continue;
      if (name == "lm_head.weight") {
        check_tied();
        continue;
      }
      throw DataError("{}: no place for the tensor {} in the model of config.json",
                      tensors_.path_of(name).string(), name);
    }
  }

  // Masks and tables that older versions stored beside the weights.
  static bool is_no_parameter(const std::string& name) {
    return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
           name.ends_with(".rotary_emb.inv_freq");
  }

  // Stored although config.json says that it is the embedding: then it must be.
  void check_tied() const {
    const std::string embedding =
        stored_name(info_.model.family == Family::gpt2 ? "transformer.wte.weight"
                                                       : "model.embed_tokens.weight");
    const std::vector<float> a = tensors_.read("lm_head.weight"), b = tensors_.read(embedding);
    if (a.size() != b.size() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) != 0) {
      throw DataError("{}: lm_head.weight is not {}, though tie_word_embeddings says so",
                      tensors_.path_of("lm_head.weight").string(), embedding);
    }
  }

  const fs::path folder_;
  const SafetensorsFolder tensors_;
  CheckpointInfo info_;
};

}  // namespace

void import_hugging_face(const fs::path& folder, const std::string& tokenizer_json,
                         const fs::path& output) {
  Import(folder, tokenizer_json).write(output);
}

}  // namespace lockstep
