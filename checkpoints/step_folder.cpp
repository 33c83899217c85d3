#include "checkpoints/step_folder.h"

#include <array>

#include "checkpoints/virtual_tensors.h"
#include "core/check.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr std::array kFlatNames{"/weights", "/exp_avg", "/exp_avg_sq"};  // in order of FlatKind

int64_t integer(const SealedFile& file, const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer()) {
    throw DataError("{}: the manifest lacks {}", file.path().string(), key);
  }
  return found->get<int64_t>();
}

}  // namespace

std::string shard_name(int worker, int workers) {
  return fmt::format("shard-{:05}-of-{:05}.h5", worker, workers);
}

fs::path checkpoint_folder(const fs::path& run_folder, int64_t step) {
  return run_folder / "checkpoints" / fmt::format("step-{:08}", step);
}

fs::path partial_folder(const fs::path& run_folder, int64_t step) {
  return run_folder / "checkpoints" / fmt::format(".step-{:08}.partial", step);
}

FileIdentity write_shard(const fs::path& path, int64_t step, int worker, int workers,
                         const CheckpointSlice& slice) {
  const std::array tensors{slice.weights, slice.exp_avg, slice.exp_avg_sq};
  SealedFileContent content;
  content.manifest = {{"kind", "shard"},    {"step", step},         {"worker", worker},
                      {"workers", workers}, {"begin", slice.begin}, {"end", slice.end}};
  for (const char* name : kFlatNames) {
    content.data.emplace_back(name, Shape{slice.end - slice.begin});
  }
  content.data_bytes = [&](size_t i) {
    return std::span(static_cast<const std::byte*>(tensors[i].data()),
                     static_cast<size_t>(tensors[i].size_bytes()));
  };
  content.describe = [&](hid_t file) {
    nlohmann::json attributes = content.manifest;
    attributes.erase("kind");
    attributes["format"] = "lockstep shard";
    attributes["format_version"] = kFormatVersion;
    hdf5::write_attributes(file, attributes);
  };
  return write_sealed_file(path, content);
}

void write_index(const fs::path& path, const CheckpointInfo& info,
                 const std::vector<Shard>& shards) {
  SealedFileContent content;
  content.manifest = to_manifest(info, "index");
  content.manifest["shards"] = nlohmann::json::array();
  for (const Shard& shard : shards) {
    content.manifest["shards"].push_back({{"name", shard.name},
                                          {"size", shard.identity.size},
                                          {"seal", shard.identity.seal},
                                          {"begin", shard.begin},
                                          {"end", shard.end}});
  }
  content.texts = {{kTokenizerText, info.tokenizer_json}};
  content.describe = [&](hid_t file) {
    add_virtual_tensors(file, ParameterTable(info.model), shards);
    describe_info(file, info, "checkpoint");
    for (const Shard& shard : shards) {
      hdf5::write_attributes(hdf5::create_group(file, "shards/" + shard.name),
                             {{"size_bytes", shard.identity.size},
                              {"checksum", shard.identity.seal},
                              {"begin", shard.begin},
                              {"end", shard.end}});
    }
  };
  write_sealed_file(path, content);
}

Shard read_shard(const fs::path& path, int64_t step) {
  const SealedFile file(path);
  require_kind(file, "shard");
  if (integer(file, file.manifest(), "step") != step) {
    throw DataError("{} belongs to step {}, not {}", path.string(),
                    integer(file, file.manifest(), "step"), step);
  }
  return {path.filename().string(), file.identity(), integer(file, file.manifest(), "begin"),
          integer(file, file.manifest(), "end")};
}

StepFolder::StepFolder(fs::path folder) : folder_(std::move(folder)) {
  const SealedFile index(folder_ / kIndexName);
  require_kind(index, "index");
  info_ = info_from(index);
  const auto shards = index.manifest().find("shards");
  const bool is_list = shards != index.manifest().end() && shards->is_array();
  int64_t covered = 0;
  for (size_t i = 0; is_list && i < shards->size(); i++) {
    const nlohmann::json& entry = (*shards)[i];
    const std::string name = shard_name(static_cast<int>(i), static_cast<int>(shards->size()));
    if (!entry.is_object() || entry.value("name", nlohmann::json()) != name) {
      throw DataError("{} does not name {}", index.path().string(), name);
    }
    Shard shard{name,
                {static_cast<uint64_t>(integer(index, entry, "size")),
                 static_cast<uint64_t>(integer(index, entry, "seal"))},
                integer(index, entry, "begin"),
                integer(index, entry, "end")};
    if (shard.begin != covered || shard.end < shard.begin) {
      throw DataError("{}: {} does not go on where the one before ends", index.path().string(),
                      name);
    }
    covered = shard.end;
    shards_.push_back(std::move(shard));
  }
  const int64_t size = ParameterTable(info_.model).size();
  if (covered != size) {
    throw DataError("{}: the shards hold {} parameters, the model has {}", index.path().string(),
                    covered, size);
  }
}

void StepFolder::check_size(const Shard& shard) const {
  const fs::path path = folder_ / shard.name;
  std::error_code error;
  const uint64_t size = fs::file_size(path, error);
  if (error) {
    throw DataError("cannot open {}: {}; bring the file back, or use another checkpoint",
                    path.string(), error.message());
  }
  if (size != shard.identity.size) {
    throw DataError(
        "{} holds {} bytes and not {}; restore it from a copy, or use another checkpoint",
        path.string(), size, shard.identity.size);
  }
}

SealedFile StepFolder::open_shard(const Shard& shard) const {
  check_size(shard);
  SealedFile file(folder_ / shard.name);
  require_kind(file, "shard");
  if (file.identity().size != shard.identity.size || file.identity().seal != shard.identity.seal) {
    throw DataError(
        "{} is not the file that index.h5 names (another checksum): does it come from another "
        "checkpoint? Restore it, or use another checkpoint",
        file.path().string());
  }
  const auto bytes = static_cast<uint64_t>(shard.end - shard.begin) * sizeof(float);
  for (size_t i = 0; i < kFlatNames.size(); i++) {
    if (file.data().size() != kFlatNames.size() || file.data()[i].name != kFlatNames[i] ||
        file.data()[i].size != bytes) {
      throw DataError("{} does not hold weights and moments of {} parameters", file.path().string(),
                      shard.end - shard.begin);
    }
  }
  return file;
}

}  // namespace lockstep
