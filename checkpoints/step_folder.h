#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/sealed_file.h"

// The files of one checkpoint folder, for writer, reader and verification. All throw DataError.
namespace lockstep {

inline constexpr const char* kIndexName = "index.h5";

std::string shard_name(int worker, int workers);  // "shard-00000-of-00002.h5"
std::filesystem::path partial_folder(const std::filesystem::path& run_folder, int64_t step);

// One shard as the index describes it.
struct Shard {
  std::string name;
  FileIdentity identity;
  std::vector<Range> ranges;  // of the flat buffers, ascending; one behind the other in the file
  int64_t size() const;       // elements
};

// What one worker writes: its ranges, one behind the other, in host memory.
struct ShardContent {
  std::vector<Range> ranges;
  Tensor weights, exp_avg, exp_avg_sq;  // (all elements) fp32 each
};

FileIdentity write_shard(const std::filesystem::path& path, int64_t step, int worker, int workers,
                         const ShardContent& content);
// Writes index.h5 over shards that together hold every element once.
void write_index(const std::filesystem::path& path, const CheckpointInfo& info,
                 const std::vector<Shard>& shards);
// What a shard that stands alone says about itself, its seal verified.
Shard read_shard(const std::filesystem::path& path, int64_t step);

// The index of a folder, read and checked; shards are opened one by one.
class StepFolder {
 public:
  explicit StepFolder(std::filesystem::path folder);
  const std::filesystem::path& path() const { return folder_; }
  const CheckpointInfo& info() const { return info_; }
  uint64_t seal() const { return seal_; }  // of the index, which holds those of the shards
  const std::vector<Shard>& shards() const { return shards_; }
  // Checks that the shard is there and has its size, without reading it.
  void check_size(const Shard& shard) const;
  // Opens a shard; its data() are weights, exp_avg and exp_avg_sq, in the order of FlatKind.
  SealedFile open_shard(const Shard& shard) const;

 private:
  std::filesystem::path folder_;
  CheckpointInfo info_;
  uint64_t seal_ = 0;
  std::vector<Shard> shards_;
};

// CheckpointInfo as part of a manifest, and back; the tokenizer is a text of its own.
inline constexpr const char* kTokenizerText = "/tokenizer.json";
nlohmann::json to_manifest(const CheckpointInfo& info, const char* kind);
CheckpointInfo info_from(const SealedFile& file);
// The same as groups and attributes.
void describe_info(hid_t file, const CheckpointInfo& info, const char* kind);
// Throws unless the manifest says that the file is of this kind ("shard", "index", "model").
void require_kind(const SealedFile& file, const char* kind);
void require_model(const SealedFile& file);  // "model" or "quantized"

}  // namespace lockstep
