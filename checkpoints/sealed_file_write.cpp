#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "checkpoints/binary_file.h"
#include "checkpoints/sealed_file.h"
#include "checkpoints/sealed_file_header.h"
#include "core/check.h"

namespace lockstep {
namespace {

// Room for the manifest: what is known before the file is laid out, and an entry for each range.
uint64_t user_block_bytes_for(const SealedFileContent& content, const std::string& manifest) {
  constexpr uint64_t kEntry = 96;  // two numbers of up to 20 digits, keys and punctuation
  uint64_t bytes = sizeof(SealedFileHeader) + manifest.size() + 4 * kEntry;
  for (const DataSpec& data : content.data) bytes += 2 * data.name.size() + kEntry;
  for (const auto& [name, text] : content.texts) bytes += 2 * name.size() + kEntry;
  return std::bit_ceil(std::max<uint64_t>(bytes, 512));
}

uint64_t blocks_of(const DataSpec& data) {
  return (data.size_bytes() + kBlockBytes - 1) / kBlockBytes;
}

// Datasets in the image, and their places into the manifest.
std::vector<DataRange> lay_out(const SealedFileContent& content, hdf5::HdfImage& image,
                               nlohmann::json& manifest) {
  std::vector<DataRange> ranges;
  int64_t blocks = 0;
  manifest["data"] = nlohmann::json::array();
  for (const DataSpec& data : content.data) {
    const uint64_t offset = image.reserve(data.name, data.type, data.shape);
    ranges.push_back({data.name, offset, data.size_bytes()});
    manifest["data"].push_back(
        {{"name", data.name}, {"offset", offset}, {"size", data.size_bytes()}});
    blocks += static_cast<int64_t>(blocks_of(data));
  }
  manifest["texts"] = nlohmann::json::array();
  for (const auto& [name, text] : content.texts) {
    if (text.empty()) continue;
    const uint64_t offset = image.write_text(name, text);
    manifest["texts"].push_back({{"name", name}, {"offset", offset}, {"size", text.size()}});
  }
  const uint64_t offset = image.reserve("/block_checksums", hdf5::NumberType::uint64, {blocks});
  manifest["block_checksums"] = {{"offset", offset}, {"size", blocks * 8}};
  return ranges;
}

// Writes the data into the file and returns the checksums of its blocks.
std::vector<uint64_t> write_data(OutputFile& file, const SealedFileContent& content,
                                 const std::vector<DataRange>& ranges) {
  std::vector<uint64_t> checksums;
  for (size_t i = 0; i < ranges.size(); i++) {
    const std::span<const std::byte> bytes = content.data_bytes(i);
    CHECK(bytes.size() == ranges[i].size, "{} holds {} bytes, not {}", ranges[i].name, bytes.size(),
          ranges[i].size);
    for (uint64_t begin = 0; begin < bytes.size(); begin += kBlockBytes) {
      const auto block = bytes.subspan(begin, std::min(kBlockBytes, bytes.size() - begin));
      // A block is small enough to be written from the cache that hashing it has filled.
      checksums.push_back(XXH3_64bits(block.data(), block.size()));
      file.write_at(ranges[i].offset + begin, block);
    }
  }
  return checksums;
}

// Copies all that is not data from the image to the file, and returns the seal over it.
uint64_t write_rest(OutputFile& file, const hdf5::HdfImage& image, uint64_t size,
                    const std::vector<DataRange>& data) {
  SealHash seal;
  std::vector<std::byte> buffer(kBlockBytes);
  for (const auto& [begin, end] : bytes_outside(data, size)) {
    for (uint64_t at = begin; at < end; at += buffer.size()) {
      const std::span part(buffer.data(), std::min<uint64_t>(buffer.size(), end - at));
      image.bytes().read(at, part.data(), part.size());
      seal.add(at, part);
      file.write_at(at, part);
    }
  }
  return seal.value();
}

}  // namespace

FileIdentity write_sealed_file(const std::filesystem::path& path,
                               const SealedFileContent& content) {
  nlohmann::json manifest = content.manifest;
  const uint64_t user_block = user_block_bytes_for(content, to_text(manifest));
  hdf5::HdfImage image(user_block);
  const std::vector<DataRange> data = lay_out(content, image, manifest);
  content.describe(image.file());
  const uint64_t size = image.finish();

  OutputFile file(path);
  file.resize(size);
  const std::vector<uint64_t> checksums = write_data(file, content, data);
  image.bytes().write(manifest["block_checksums"]["offset"].get<uint64_t>(), checksums.data(),
                      checksums.size() * sizeof(uint64_t));

  const std::string text = to_text(manifest);
  SealedFileHeader header;
  header.user_block_size = user_block;
  header.file_size = size;
  header.manifest_size = text.size();
  CHECK(sizeof(header) + text.size() <= user_block, "{} bytes of manifest in a block of {}",
        text.size(), user_block);
  image.bytes().write(0, &header, sizeof(header));
  image.bytes().write(sizeof(header), text.data(), text.size());
  const uint64_t seal = write_rest(file, image, size, data);
  file.write_at(offsetof(SealedFileHeader, seal), std::as_bytes(std::span(&seal, 1)));
  file.flush_and_close();
  return {size, seal};
}

}  // namespace lockstep
