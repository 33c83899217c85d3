#pragma once
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/sealed_file.h"

// What writer and reader of sealed files share.
namespace lockstep {

inline constexpr char kMagic[] = {'L', 'O', 'C', 'K', 'S', 'T', 'E', 'P'};

struct SealedFileHeader {
  char magic[8] = {'L', 'O', 'C', 'K', 'S', 'T', 'E', 'P'};
  uint64_t version = kFormatVersion;
  uint64_t user_block_size = 0;
  uint64_t file_size = 0;
  uint64_t block_size = kBlockBytes;
  uint64_t manifest_size = 0;
  uint64_t seal = 0;
};
static_assert(sizeof(SealedFileHeader) == 56);

// As text, with what is not UTF-8 (a path, say) replaced.
inline std::string to_text(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The [begin, end) of a file that no data range covers. Ranges may come in any order, but must not
// overlap and must lie inside.
std::vector<std::pair<uint64_t, uint64_t>> bytes_outside(const std::vector<DataRange>& data,
                                                         uint64_t file_size);

// XXH3 over bytes given in the order of the file, the header's seal taken as zero.
class SealHash {
 public:
  SealHash();
  SealHash(SealHash&&) = delete;
  ~SealHash();
  void add(uint64_t offset, std::span<std::byte> bytes);  // zeroes the seal in place
  uint64_t value() const;

 private:
  XXH3_state_t* state_;
};

}  // namespace lockstep
