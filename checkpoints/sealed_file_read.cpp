#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "checkpoints/sealed_file.h"
#include "checkpoints/sealed_file_header.h"
#include "core/check.h"
#include "core/thread_pool.h"

namespace lockstep {

std::vector<std::pair<uint64_t, uint64_t>> bytes_outside(const std::vector<DataRange>& data,
                                                         uint64_t file_size) {
  std::vector<std::pair<uint64_t, uint64_t>> used;
  for (const DataRange& range : data) {
    if (range.size > 0) used.emplace_back(range.offset, range.offset + range.size);
  }
  std::sort(used.begin(), used.end());
  std::vector<std::pair<uint64_t, uint64_t>> outside;
  uint64_t at = 0;
  for (const auto& [begin, end] : used) {
    if (begin > at) outside.emplace_back(at, begin);
    at = end;
  }
  if (at < file_size) outside.emplace_back(at, file_size);
  return outside;
}

SealHash::SealHash() : state_(XXH3_createState()) {
  CHECK(state_ != nullptr);
  XXH3_64bits_reset(state_);
}

SealHash::~SealHash() { XXH3_freeState(state_); }

void SealHash::add(uint64_t offset, std::span<std::byte> bytes) {
  const uint64_t begin = offsetof(SealedFileHeader, seal);
  if (offset <= begin && begin + sizeof(uint64_t) <= offset + bytes.size()) {
    std::memset(bytes.data() + (begin - offset), 0, sizeof(uint64_t));
  }
  XXH3_64bits_update(state_, bytes.data(), bytes.size());
}

uint64_t SealHash::value() const { return XXH3_64bits_digest(state_); }

namespace {

// Larger than any real manifest or tokenizer; a false size must not exhaust memory.
constexpr uint64_t kLargestText = uint64_t{1} << 28;

constexpr const char* kMend = "restore it from a copy, or use another checkpoint";

// A number of the manifest that may be anything at all.
uint64_t unsigned_field(const nlohmann::json& object, const char* key,
                        const std::filesystem::path& path) {
  if (object.is_object()) {
    const auto found = object.find(key);
    if (found != object.end() && found->is_number_unsigned()) return found->get<uint64_t>();
  }
  throw DataError("{}: the manifest lacks {}; {}", path.string(), key, kMend);
}

std::string text_field(const nlohmann::json& object, const char* key,
                       const std::filesystem::path& path) {
  if (object.is_object()) {
    const auto found = object.find(key);
    if (found != object.end() && found->is_string()) return found->get<std::string>();
  }
  throw DataError("{}: the manifest lacks {}; {}", path.string(), key, kMend);
}

uint64_t blocks_of(const DataRange& range) {
  return range.size / kBlockBytes + (range.size % kBlockBytes != 0);
}

}  // namespace

struct SealedFile::Header : SealedFileHeader {};

SealedFile::SealedFile(std::filesystem::path path) : file_(std::move(path)) {
  const Header header = read_header();
  identity_ = {header.file_size, header.seal};
  read_manifest(header);
  read_ranges(header.user_block_size);
  verify_seal(header.seal);
  read_block_checksums();
}

SealedFile::Header SealedFile::read_header() const {
  const uint64_t size = file_.size();
  Header header;
  char start[8] = {};
  file_.read_at(0, start, std::min<uint64_t>(size, sizeof(start)));
  if (std::memcmp(start, kMagic, sizeof(kMagic)) != 0) {
    const bool hdf5 = std::memcmp(start, "\x89HDF\r\n\x1a\n", 8) == 0;
    throw DataError("{} is not a checkpoint{}", path().string(),
                    size == 0 ? ": it is empty"
                    : hdf5    ? ": it is an HDF5 file that Lockstep has not written"
                              : ": its first bytes are not those of one");
  }
  if (size < sizeof(SealedFileHeader)) {
    throw DataError("{} holds {} bytes, truncated; {}", path().string(), size, kMend);
  }
  file_.read_at(0, static_cast<SealedFileHeader*>(&header), sizeof(SealedFileHeader));
  if (header.version != kFormatVersion || header.block_size != kBlockBytes) {
    throw DataError(
        "{} has version {} of the format, this program reads version {}: use a newer one",
        path().string(), header.version, kFormatVersion);
  }
  if (header.file_size != size) {
    throw DataError("{} holds {} bytes and not {}, {}; {}", path().string(), size, header.file_size,
                    size < header.file_size ? "truncated" : "something was added", kMend);
  }
  if (header.user_block_size < sizeof(SealedFileHeader) || header.user_block_size > size ||
      header.manifest_size > header.user_block_size - sizeof(SealedFileHeader) ||
      header.manifest_size > kLargestText) {
    throw DataError("{} has a damaged header; {}", path().string(), kMend);
  }
  return header;
}

void SealedFile::read_manifest(const Header& header) {
  std::string text(header.manifest_size, '\0');
  file_.read_at(sizeof(SealedFileHeader), text.data(), text.size());
  manifest_ = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!manifest_.is_object() || !manifest_.contains("data") || !manifest_["data"].is_array() ||
      !manifest_.contains("texts") || !manifest_["texts"].is_array() ||
      !manifest_.contains("block_checksums")) {
    throw DataError("{} has a damaged manifest; {}", path().string(), kMend);
  }
}

void SealedFile::read_ranges(uint64_t user_block_size) {
  const auto check = [&](const DataRange& range) {
    const bool inside =
        range.size == 0 || (range.offset >= user_block_size && range.offset <= identity_.size &&
                            range.size <= identity_.size - range.offset);
    if (!inside) {
      throw DataError("{}: {} is said to lie outside of the file; {}", path().string(), range.name,
                      kMend);
    }
  };
  const auto range_of = [&](const nlohmann::json& entry, std::string name) {
    DataRange range{std::move(name), unsigned_field(entry, "offset", path()),
                    unsigned_field(entry, "size", path())};
    check(range);
    return range;
  };
  for (const nlohmann::json& entry : manifest_["data"]) {
    data_.push_back(range_of(entry, text_field(entry, "name", path())));
  }
  for (const nlohmann::json& entry : manifest_["texts"]) {
    if (range_of(entry, text_field(entry, "name", path())).size > kLargestText) {
      throw DataError("{} has a damaged manifest; {}", path().string(), kMend);
    }
  }
  block_checksum_range_ = range_of(manifest_["block_checksums"], "block_checksums");

  std::vector<const DataRange*> in_order;
  for (const DataRange& range : data_) {
    if (range.size > 0) in_order.push_back(&range);
  }
  std::sort(in_order.begin(), in_order.end(),
            [](const DataRange* a, const DataRange* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < in_order.size(); i++) {
    if (in_order[i - 1]->offset + in_order[i - 1]->size > in_order[i]->offset) {
      throw DataError("{}: {} and {} are said to overlap; {}", path().string(),
                      in_order[i - 1]->name, in_order[i]->name, kMend);
    }
  }
}

void SealedFile::verify_seal(uint64_t seal) const {
  SealHash hash;
  std::vector<std::byte> buffer(kBlockBytes);
  for (const auto& [begin, end] : bytes_outside(data_, identity_.size)) {
    for (uint64_t at = begin; at < end; at += buffer.size()) {
      const std::span part(buffer.data(), std::min<uint64_t>(buffer.size(), end - at));
      file_.read_at(at, part.data(), part.size());
      hash.add(at, part);
    }
  }
  if (hash.value() != seal) {
    throw DataError("{} is damaged or was changed: its checksum does not fit; {}", path().string(),
                    kMend);
  }
}

void SealedFile::read_block_checksums() {
  uint64_t blocks = 0;
  for (const DataRange& range : data_) {
    first_block_.push_back(blocks);
    blocks += blocks_of(range);
  }
  if (block_checksum_range_.size != blocks * sizeof(uint64_t)) {
    throw DataError("{}: {} blocks of data have {} bytes of checksums; {}", path().string(), blocks,
                    block_checksum_range_.size, kMend);
  }
  block_checksums_.resize(blocks);
  file_.read_at(block_checksum_range_.offset, block_checksums_.data(), block_checksum_range_.size);
}

std::string SealedFile::text(const std::string& name) const {
  for (const nlohmann::json& entry : manifest_["texts"]) {
    if (entry["name"] != name) continue;
    std::string text(entry["size"].get<uint64_t>(), '\0');
    file_.read_at(entry["offset"].get<uint64_t>(), text.data(), text.size());
    return text;
  }
  return "";
}

bool SealedFile::block_is_good(size_t index, uint64_t block,
                               std::span<const std::byte> bytes) const {
  return XXH3_64bits(bytes.data(), bytes.size()) == block_checksums_[first_block_[index] + block];
}

void SealedFile::read(size_t index, uint64_t begin, std::span<std::byte> out) const {
  const DataRange& range = data_[index];
  CHECK(begin <= range.size && out.size() <= range.size - begin, "{}: bytes {} to {} of {}",
        range.name, begin, begin + out.size(), range.size);
  if (out.empty()) return;
  const uint64_t end = begin + out.size();
  const uint64_t first = begin / kBlockBytes, last = (end - 1) / kBlockBytes;
  parallel_for(static_cast<int64_t>(last - first + 1), 1, [&](int64_t k, int64_t) {
    const uint64_t block = first + static_cast<uint64_t>(k);
    const uint64_t block_begin = block * kBlockBytes;
    const uint64_t size = std::min(kBlockBytes, range.size - block_begin);
    const bool whole = begin <= block_begin && block_begin + size <= end;
    std::vector<std::byte> buffer(whole ? 0 : size);
    const std::span<std::byte> bytes =
        whole ? out.subspan(block_begin - begin, size) : std::span(buffer);
    file_.read_at(range.offset + block_begin, bytes.data(), size);
    if (!block_is_good(index, block, bytes)) {
      throw DataError("{}: {} is damaged: the checksum of bytes {} to {} does not fit; {}",
                      path().string(), range.name, range.offset + block_begin,
                      range.offset + block_begin + size, kMend);
    }
    if (whole) return;
    const uint64_t from = std::max(begin, block_begin), to = std::min(end, block_begin + size);
    std::memcpy(out.data() + (from - begin), buffer.data() + (from - block_begin), to - from);
  });
}

std::vector<std::string> SealedFile::damaged_data() const {
  std::vector<std::string> found;
  for (size_t index = 0; index < data_.size(); index++) {
    const DataRange& range = data_[index];
    const auto blocks = static_cast<int64_t>(blocks_of(range));
    std::mutex mutex;
    int64_t first_bad = blocks;
    parallel_for(blocks, 1, [&](int64_t block, int64_t) {
      const uint64_t begin = static_cast<uint64_t>(block) * kBlockBytes;
      std::vector<std::byte> bytes(std::min(kBlockBytes, range.size - begin));
      file_.read_at(range.offset + begin, bytes.data(), bytes.size());
      if (block_is_good(index, static_cast<uint64_t>(block), bytes)) return;
      std::lock_guard lock(mutex);
      first_bad = std::min(first_bad, block);
    });
    if (first_bad == blocks) continue;
    const uint64_t begin = range.offset + static_cast<uint64_t>(first_bad) * kBlockBytes;
    found.push_back(
        fmt::format("{}: {} is damaged: the checksum of the block at byte {} does not fit",
                    path().string(), range.name, begin));
  }
  return found;
}

}  // namespace lockstep
