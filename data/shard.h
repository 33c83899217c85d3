#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

// Files of token ids in llm.c's layout, little-endian: 256 int32 (magic, version, number of tokens,
// zeros), then the ids. Ids below 65536: magic 20240520, version 1, uint16 (llm.c's "gpt-2" files);
// a larger vocabulary: magic 20240801, version 7, uint32 (its "llama-3" files).
namespace lockstep {

inline constexpr int64_t kShardHeaderBytes = 256 * 4;

struct ShardInfo {
  std::string file;  // name within the dataset folder
  int64_t tokens = 0;
  int64_t size_bytes = 0;
  std::string xxh3;  // XXH3, 64 bits, of the whole file, in 16 hexadecimal digits
};

// Bytes that an id takes in shards of this vocabulary: 2 or 4.
int shard_token_bytes(int64_t vocab_size);

// XXH3, 64 bits, in 16 hexadecimal digits.
std::string xxh3_hex(std::span<const std::byte> bytes);

// Checks the header of a shard against its size; returns its tokens. Throws DataError, naming the
// file, when it is not a shard of ids of token_bytes, or is longer or shorter than its header says.
int64_t check_shard(const std::filesystem::path& path, std::span<const std::byte> bytes,
                    int token_bytes);

// Writes NAME-00000.bin, NAME-00001.bin, ... into a folder. Throws DataError when the disk is full.
class ShardWriter {
 public:
  ShardWriter(std::filesystem::path folder, std::string name, int64_t vocab_size,
              int64_t max_tokens);
  ~ShardWriter();
  void append(std::span<const int32_t> ids);
  // Flushes all to disk and returns the shards. No append after it.
  std::vector<ShardInfo> finish();

 private:
  class File;
  void finish_file();

  std::filesystem::path folder_;
  std::string name_;
  int token_bytes_;
  int64_t max_tokens_;
  std::unique_ptr<File> file_;
  std::vector<ShardInfo> shards_;
};

}  // namespace lockstep
