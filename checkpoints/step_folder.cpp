#include "checkpoints/step_folder.h"

#include <algorithm>
#include <array>
#include <utility>

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

nlohmann::json to_json(const std::vector<Range>& ranges) {
  nlohmann::json list = nlohmann::json::array();
  for (const Range& range : ranges) list.push_back({range.begin, range.end});
  return list;
}

std::vector<Range> ranges_of(const SealedFile& file, const nlohmann::json& object) {
  std::vector<Range> ranges;
  const auto list = object.find("ranges");
  for (size_t i = 0; list != object.end() && list->is_array() && i < list->size(); i++) {
    const nlohmann::json& pair = (*list)[i];
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number_integer() ||
        !pair[1].is_number_integer()) {
      throw DataError("{}: the manifest has a range that is none", file.path().string());
    }
    ranges.push_back({pair[0].get<int64_t>(), pair[1].get<int64_t>()});
  }
  return ranges;
}

// Throws unless the shards hold each of `size` elements once.
void check_cover(const fs::path& index, const std::vector<Shard>& shards, int64_t size) {
  std::vector<Range> all;
  for (const Shard& shard : shards) {
    all.insert(all.end(), shard.ranges.begin(), shard.ranges.end());
  }
  std::sort(all.begin(), all.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t covered = 0;
  for (const Range& range : all) {
    if (range.begin != covered || range.end < range.begin) {
      throw DataError("{}: the shards do not hold each parameter once: something is wrong at {}",
                      index.string(), std::min(range.begin, covered));
    }
    covered = range.end;
  }
  if (covered != size) {
    throw DataError("{}: the shards hold {} parameters, the model has {}", index.string(), covered,
                    size);
  }
}

}  // namespace

int64_t Shard::size() const {
  int64_t size = 0;
  for (const Range& range : ranges) size += range.size();
  return size;
}

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
                         const ShardContent& shard) {
  const std::array tensors{shard.weights, shard.exp_avg, shard.exp_avg_sq};
  SealedFileContent content;
  content.manifest = {{"kind", "shard"},
                      {"step", step},
                      {"worker", worker},
                      {"workers", workers},
                      {"ranges", to_json(shard.ranges)}};
  for (const char* name : kFlatNames) content.data.push_back({name, shard.weights.shape()});
  content.data_bytes = [&](size_t i) {
    return std::span(static_cast<const std::byte*>(tensors[i].data()),
                     static_cast<size_t>(tensors[i].size_bytes()));
  };
  content.describe = [&](hid_t file) {
    nlohmann::json attributes = content.manifest;
    attributes.erase("kind");
    attributes.erase("ranges");
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
                                          {"ranges", to_json(shard.ranges)}});
  }
  content.texts = {{kTokenizerText, info.tokenizer_json}};
  content.describe = [&](hid_t file) {
    add_virtual_tensors(file, ParameterTable(info.model), shards);
    describe_info(file, info, "checkpoint");
    for (const Shard& shard : shards) {
      hdf5::write_attributes(hdf5::create_group(file, "shards/" + shard.name),
                             {{"size_bytes", shard.identity.size},
                              {"checksum", shard.identity.seal},
                              {"parameters", shard.size()}});
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
  return {path.filename().string(), file.identity(), ranges_of(file, file.manifest())};
}

StepFolder::StepFolder(fs::path folder) : folder_(std::move(folder)) {
  const SealedFile index(folder_ / kIndexName);
  require_kind(index, "index");
  info_ = info_from(index);
  seal_ = index.identity().seal;
  const auto shards = index.manifest().find("shards");
  const bool is_list = shards != index.manifest().end() && shards->is_array();
  for (size_t i = 0; is_list && i < shards->size(); i++) {
    const nlohmann::json& entry = (*shards)[i];
    const std::string name = shard_name(static_cast<int>(i), static_cast<int>(shards->size()));
    if (!entry.is_object() || entry.value("name", nlohmann::json()) != name) {
      throw DataError("{} does not name {}", index.path().string(), name);
    }
    shards_.push_back({name,
                       {static_cast<uint64_t>(integer(index, entry, "size")),
                        static_cast<uint64_t>(integer(index, entry, "seal"))},
                       ranges_of(index, entry)});
  }
  check_cover(index.path(), shards_, ParameterTable(info_.model).size());
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
  const auto bytes = static_cast<uint64_t>(shard.size()) * sizeof(float);
  for (size_t i = 0; i < kFlatNames.size(); i++) {
    if (file.data().size() != kFlatNames.size() || file.data()[i].name != kFlatNames[i] ||
        file.data()[i].size != bytes) {
      throw DataError("{} does not hold weights and moments of {} parameters", file.path().string(),
                      shard.size());
    }
  }
  return file;
}

}  // namespace lockstep
