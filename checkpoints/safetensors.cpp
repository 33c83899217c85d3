#include "checkpoints/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLargestHeader = 100'000'000;  // the format's own limit, bytes

// 0 for a type that the format does not have.
uint64_t bytes_of_dtype(const std::string& dtype) {
  static const std::map<std::string, uint64_t> sizes{
      {"F64", 8},  {"F32", 4}, {"F16", 2},     {"BF16", 2},   {"I64", 8}, {"I32", 4},
      {"I16", 2},  {"I8", 1},  {"U64", 8},     {"U32", 4},    {"U16", 2}, {"U8", 1},
      {"BOOL", 1}, {"C64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

// Elements of a shape, or nothing when there are more than a file could hold.
std::optional<uint64_t> elements_of(const std::vector<int64_t>& shape) {
  uint64_t elements = 1;
  for (const int64_t dim : shape) {
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements)) return {};
  }
  return elements;
}

// One entry of the header, or nothing when it is not well-formed.
std::optional<SafetensorsFile::Entry> parse_entry(const nlohmann::json& json) {
  const auto is_size = [](const nlohmann::json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{INT64_MAX};
  };
  if (!json.is_object() || !json.contains("dtype") || !json["dtype"].is_string() ||
      !json.contains("shape") || !json["shape"].is_array() || !json.contains("data_offsets") ||
      !json["data_offsets"].is_array() || json["data_offsets"].size() != 2) {
    return {};
  }
  SafetensorsFile::Entry entry;
  entry.dtype = json["dtype"];
  for (const nlohmann::json& dim : json["shape"]) {
    if (!is_size(dim)) return {};
    entry.shape.push_back(dim);
  }
  for (const nlohmann::json& offset : json["data_offsets"]) {
    if (!is_size(offset)) return {};
  }
  entry.begin = json["data_offsets"][0];
  entry.end = json["data_offsets"][1];
  const std::optional<uint64_t> elements = elements_of(entry.shape);
  uint64_t bytes = 0;
  if (!elements || bytes_of_dtype(entry.dtype) == 0 ||
      __builtin_mul_overflow(*elements, bytes_of_dtype(entry.dtype), &bytes) ||
      entry.begin > entry.end || entry.end - entry.begin != bytes) {
    return {};
  }
  return entry;
}

}  // namespace

std::string shape_to_string(const std::vector<int64_t>& shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

SafetensorsFile::SafetensorsFile(fs::path path) : file_(std::move(path)) { read_header(); }

void SafetensorsFile::read_header() {
  uint64_t length = 0;
  if (file_.size() < sizeof(length)) {
    throw DataError("{} holds {} bytes: not a safetensors file, or truncated", path().string(),
                    file_.size());
  }
  file_.read_at(0, &length, sizeof(length));
  if (length > file_.size() - sizeof(length) || length > kLargestHeader) {
    throw DataError("{}: the header is said to take {} bytes: not a safetensors file, or truncated",
                    path().string(), length);
  }
  std::string text(length, '\0');
  file_.read_at(sizeof(length), text.data(), length);
  const nlohmann::json header = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) throw DataError("{}: the header is not JSON", path().string());
  const uint64_t data_begin = sizeof(length) + length;
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") continue;
    std::optional<Entry> entry = parse_entry(json);
    if (!entry || entry->end > file_.size() - data_begin) {
      throw DataError("{}: the header's entry for {} does not fit the file", path().string(), name);
    }
    entry->begin += data_begin;
    entry->end += data_begin;
    entries_.emplace(name, std::move(*entry));
  }
  check_layout(data_begin);
}

void SafetensorsFile::check_layout(uint64_t data_begin) const {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& [name, entry] : entries_) ranges.emplace_back(entry.begin, entry.end);
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = data_begin;
  for (const auto& [begin, end] : ranges) {
    if (begin != at) {
      throw DataError("{}: the tensors {} at byte {}", path().string(),
                      begin < at ? "overlap" : "leave a gap", std::min(at, begin));
    }
    at = end;
  }
  if (at != file_.size()) {
    throw DataError("{} goes on after its last tensor, at byte {}", path().string(), at);
  }
}

std::vector<float> SafetensorsFile::read(const std::string& name) const {
  const Entry& entry = entries_.at(name);
  std::vector<float> values(elements_of(entry.shape).value());
  const auto widen = [&]<class T>(T) {
    std::vector<T> narrow(values.size());
    file_.read_at(entry.begin, narrow.data(), narrow.size() * sizeof(T));
    std::transform(narrow.begin(), narrow.end(), values.begin(), [](T x) { return to_float(x); });
  };
  if (entry.dtype == "F32") {
    file_.read_at(entry.begin, values.data(), values.size() * sizeof(float));
  } else if (entry.dtype == "BF16") {
    widen(bf16{});
  } else if (entry.dtype == "F16") {
    widen(fp16{});
  } else {
    throw DataError("{}: {} is of type {}; F32, F16 and BF16 can be imported", path().string(),
                    name, entry.dtype);
  }
  return values;
}

SafetensorsFolder::SafetensorsFolder(const fs::path& folder) {
  const fs::path single = folder / "model.safetensors";
  const fs::path index = folder / "model.safetensors.index.json";
  std::error_code error;
  if (fs::exists(single, error)) {
    add_file(single);
  } else if (fs::exists(index, error)) {
    read_index(folder, index);
  } else {
    const bool pickled = fs::exists(folder / "pytorch_model.bin", error);
    throw DataError("{} holds no model.safetensors{}", folder.string(),
                    pickled ? " but pytorch_model.bin: convert it with save_pretrained of "
                              "`transformers`"
                            : " and no model.safetensors.index.json");
  }
}

void SafetensorsFolder::add_file(const fs::path& path) {
  SafetensorsFile file(path);
  for (const auto& [name, entry] : file.entries()) {
    if (!file_of_.emplace(name, files_.size()).second) {
      throw DataError("{} stands in {} and in {}", name, path_of(name).string(), path.string());
    }
  }
  files_.push_back(std::move(file));
}

void SafetensorsFolder::read_index(const fs::path& folder, const fs::path& index) {
  const nlohmann::json json =
      nlohmann::json::parse(read_file(index), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    throw DataError("{} has no weight_map", index.string());
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    // A name in this folder, and not a way out of it.
    if (!file.is_string() ||
        fs::path(file.get<std::string>()).filename().string() != file.get<std::string>()) {
      throw DataError("{}: {} is said to stand in {}, which is not the name of a file",
                      index.string(), tensor, file.dump());
    }
    names.insert(file.get<std::string>());
  }
  for (const std::string& name : names) add_file(folder / name);
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!contains(tensor) || path_of(tensor).filename().string() != file.get<std::string>()) {
      throw DataError("{}: {} does not stand in {}", index.string(), tensor,
                      file.get<std::string>());
    }
  }
}

std::vector<std::string> SafetensorsFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : file_of_) names.push_back(name);
  return names;
}

const SafetensorsFile::Entry& SafetensorsFolder::entry(const std::string& name) const {
  return files_[file_of_.at(name)].entries().at(name);
}

std::vector<float> SafetensorsFolder::read(const std::string& name) const {
  return files_[file_of_.at(name)].read(name);
}

const fs::path& SafetensorsFolder::path_of(const std::string& name) const {
  return files_[file_of_.at(name)].path();
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, const std::vector<Item>& items)
    : file_(path) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t at = 0;
  for (const Item& item : items) {
    const uint64_t end = at + elements_of(item.shape).value() * sizeof(float);
    header[item.name] = {{"dtype", "F32"}, {"shape", item.shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the tensors are aligned
  const uint64_t length = text.size();
  file_.append(std::as_bytes(std::span(&length, 1)));
  file_.append(text);
}

}  // namespace lockstep
