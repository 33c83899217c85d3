#include <xxhash.h>

#include <algorithm>

#include "tests/checkpoints/quantized.h"

// Whatever happens to the bytes of a checkpoint, verification sees it, and reading either gives the
// values that were written or throws DataError.
namespace lockstep {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr int64_t kStep = 100;

// A run with one checkpoint of two workers, and ways to spoil and mend its files.
class Damage : public testing::Test {
 protected:
  Damage() : model_(tiny_gpt2()), size_(ParameterTable(model_).size()) {
    save_as_workers(run_.path(), info_of(model_, kStep), {0, size_ / 3, size_});
    folder_ = run_ / "checkpoints/step-00000100";
    for (const char* name : {"index.h5", "shard-00000-of-00002.h5", "shard-00001-of-00002.h5"}) {
      files_.emplace_back(name, bytes_of(folder_ / name));
    }
  }
  void restore() const {
    for (const auto& [name, bytes] : files_) write_bytes(folder_ / name, bytes);
  }
  // Opens and reads all. True when it could; any error but DataError fails the test.
  bool reads_as_written() const {
    try {
      const Checkpoint checkpoint = Checkpoint::open(folder_);
      for (const FlatKind kind : {FlatKind::weights, FlatKind::exp_avg, FlatKind::exp_avg_sq}) {
        const std::vector<float> values =
            read_floats(checkpoint, kind, 0, checkpoint.table().size());
        for (int64_t i = 0; i < static_cast<int64_t>(values.size()); i++) {
          EXPECT_EQ(values[i], value_at(kind, i, kStep));
        }
      }
      return true;
    } catch (const DataError& error) {
      return false;
    }
  }
  std::string open_error() const {
    return message_of([&] { Checkpoint::open(folder_); });
  }

  const ModelConfig model_;
  const int64_t size_;
  TemporaryFolder run_;
  fs::path folder_;
  std::vector<std::pair<std::string, std::string>> files_;  // as written
};

TEST_F(Damage, EveryFlippedByteIsSeen) {
  for (const auto& [name, bytes] : files_) {
    // All of the header, and after it every so many bytes: a prime, so that fields of all kinds
    // are met. (With a step of 1 the test passes too, and takes a minute.)
    for (size_t i = 0; i < bytes.size(); i += i < 64 ? 1 : 47) {
      std::string flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << i % 8));
      write_bytes(folder_ / name, flipped);
      ASSERT_THAT(verify_checkpoint(folder_), Not(IsEmpty())) << name << " byte " << i;
      ASSERT_FALSE(reads_as_written()) << name << " byte " << i;
    }
    restore();
  }
  EXPECT_THAT(verify_checkpoint(folder_), IsEmpty());
  EXPECT_TRUE(reads_as_written());
}

TEST_F(Damage, EveryOtherLengthIsSeen) {
  for (const auto& [name, bytes] : files_) {
    for (size_t length = 0; length < bytes.size(); length += length < 64 ? 7 : 911) {
      write_bytes(folder_ / name, bytes.substr(0, length));
      ASSERT_THAT(verify_checkpoint(folder_), ElementsAre(HasSubstr(name))) << length;
      ASSERT_THAT(open_error(), HasSubstr(name)) << length;
    }
    write_bytes(folder_ / name, bytes + "x");
    EXPECT_THAT(verify_checkpoint(folder_), ElementsAre(HasSubstr(name)));
    EXPECT_THAT(open_error(), HasSubstr(name));
    restore();
  }
}

TEST_F(Damage, NamesFileAndWayOut) {
  const std::string shard = "shard-00001-of-00002.h5";
  fs::rename(folder_ / shard, folder_ / "shard-1.h5");
  EXPECT_THAT(open_error(), AllOf(HasSubstr(shard), HasSubstr("bring the file back")));
  restore();
  fs::rename(folder_ / "shard-00000-of-00002.h5", folder_ / "other");
  fs::rename(folder_ / shard, folder_ / "shard-00000-of-00002.h5");
  fs::rename(folder_ / "other", folder_ / shard);
  EXPECT_THAT(open_error(), HasSubstr("shard-00000-of-00002.h5 holds"));
  restore();
  write_bytes(folder_ / "index.h5", "\x89HDF\r\n\x1a\n and so on");
  EXPECT_THAT(open_error(), HasSubstr("an HDF5 file that Lockstep has not written"));
  write_bytes(folder_ / "index.h5", "");
  EXPECT_THAT(open_error(), AllOf(HasSubstr("index.h5"), HasSubstr("empty")));
  std::string newer = files_[0].second;
  newer[8] = 2;
  write_bytes(folder_ / "index.h5", newer);
  EXPECT_THAT(open_error(), AllOf(HasSubstr("version 2"), HasSubstr("use a newer one")));
  fs::remove(folder_ / "index.h5");
  EXPECT_THAT(open_error(), HasSubstr("no index.h5"));
  EXPECT_THAT(message_of([&] { Checkpoint::open(run_ / "nothing"); }), HasSubstr("nothing"));
  EXPECT_THAT(message_of([&] { Checkpoint::open(folder_ / shard); }), HasSubstr("kind shard"));
}

// The same step and sizes, other values: only the index's checksum tells.
TEST_F(Damage, AShardOfAnotherRunIsSeen) {
  const TemporaryFolder other;
  save_as_workers(other.path(), info_of(model_, 50), {0, size_ / 3, size_});
  fs::copy_file(other / "checkpoints/step-00000050/shard-00000-of-00002.h5",
                folder_ / "shard-00000-of-00002.h5", fs::copy_options::overwrite_existing);
  EXPECT_FALSE(reads_as_written());
  EXPECT_THAT(verify_checkpoint(folder_), ElementsAre(HasSubstr("another checksum")));
}

TEST_F(Damage, OnlyWhatIsReadIsVerified) {
  // The last byte of the data of the second shard: of exp_avg_sq, whose block nobody reads here.
  std::string bytes = files_[2].second;
  const float last = value_at(FlatKind::exp_avg_sq, size_ - 1, kStep);
  const size_t at = bytes.rfind(std::string(reinterpret_cast<const char*>(&last), sizeof(last)));
  ASSERT_NE(at, std::string::npos);
  bytes[at] ^= 1;
  write_bytes(folder_ / "shard-00001-of-00002.h5", bytes);
  const Checkpoint checkpoint = Checkpoint::open(folder_);
  EXPECT_EQ(read_floats(checkpoint, FlatKind::weights, size_ - 1, size_)[0],
            value_at(FlatKind::weights, size_ - 1, kStep));
  EXPECT_EQ(read_floats(checkpoint, FlatKind::exp_avg_sq, 0, 1)[0],
            value_at(FlatKind::exp_avg_sq, 0, kStep));
  EXPECT_THAT(message_of([&] { read_floats(checkpoint, FlatKind::exp_avg_sq, size_ - 1, size_); }),
              AllOf(HasSubstr("shard-00001-of-00002.h5"), HasSubstr("/exp_avg_sq is damaged")));
}

TEST_F(Damage, TheNewestGoodOneIsFound) {
  save_as_workers(run_.path(), info_of(model_, 200), {0, size_});
  save_as_workers(run_.path(), info_of(model_, 300), {0, size_});
  const fs::path newest = run_ / "checkpoints/step-00000300/shard-00000-of-00001.h5";
  std::string bytes = bytes_of(newest);
  const float first = value_at(FlatKind::weights, 0, 300);
  bytes[bytes.find(std::string(reinterpret_cast<const char*>(&first), sizeof(first))) + 3] ^= 64;
  write_bytes(newest, bytes);
  fs::remove(run_ / "checkpoints/step-00000200/index.h5");
  EXPECT_EQ(newest_good_checkpoint(run_.path()), folder_);
  EXPECT_EQ(Checkpoint::open(run_.path()).info().step, kStep);
  EXPECT_EQ(verify_checkpoint(run_.path()).size(), 2);
  fs::remove(folder_ / "shard-00000-of-00002.h5");
  EXPECT_THAT(message_of([&] { newest_good_checkpoint(run_.path()); }),
              AllOf(HasSubstr("no checkpoint of"), HasSubstr("step-00000300")));
}

// Retention neither counts nor removes what is damaged.
TEST_F(Damage, DamagedOnesDoNotPushOutGoodOnes) {
  save_as_workers(run_.path(), info_of(model_, 200), {0, size_});
  fs::remove(run_ / "checkpoints/step-00000200/shard-00000-of-00001.h5");
  save_as_workers(run_.path(), info_of(model_, 300), {0, size_}, /*keep=*/2);
  EXPECT_THAT(list_checkpoints(run_.path()), ElementsAre(100, 200, 300));
  save_as_workers(run_.path(), info_of(model_, 400), {0, size_}, /*keep=*/2);
  EXPECT_THAT(list_checkpoints(run_.path()), ElementsAre(200, 300, 400));
}

struct Header {
  char magic[8];
  uint64_t version, user_block_size, file_size, block_size, manifest_size, seal;
};

json manifest_of(const std::string& bytes) {
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  return json::parse(bytes.substr(sizeof(header), header.manifest_size));
}

// The bytes of the file that its manifest does not call data: [begin, end) each.
std::vector<std::pair<uint64_t, uint64_t>> sealed_ranges(const json& manifest, uint64_t file_size) {
  std::vector<std::pair<uint64_t, uint64_t>> data;
  const json ranges = manifest.is_object() ? manifest.value("data", json()) : json();
  for (const json& range : ranges) {
    if (!range.is_object() || !range.value("offset", json()).is_number_unsigned() ||
        !range.value("size", json()).is_number_unsigned()) {
      continue;
    }
    const uint64_t offset = range["offset"], size = range["size"];
    if (offset <= file_size && size <= file_size - offset) data.emplace_back(offset, offset + size);
  }
  data.emplace_back(file_size, file_size);
  std::sort(data.begin(), data.end());
  std::vector<std::pair<uint64_t, uint64_t>> sealed;
  uint64_t at = 0;
  for (const auto& [begin, end] : data) {
    if (begin > at) sealed.emplace_back(at, begin);
    at = std::max(at, end);
  }
  return sealed;
}

// The file with another manifest and the seal that fits it: what a hostile author would make.
// Written from docs/checkpoint_format.md, not with the program's own code.
std::string resealed(const std::string& bytes, const json& manifest) {
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const std::string text = manifest.dump();
  CHECK(sizeof(header) + text.size() <= header.user_block_size);
  header.manifest_size = text.size();
  header.seal = 0;
  std::string changed = bytes;
  const auto put_header = [&] { std::memcpy(changed.data(), &header, sizeof(header)); };
  put_header();
  changed.replace(sizeof(header), text.size(), text);
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  for (const auto& [begin, end] : sealed_ranges(manifest, changed.size())) {
    XXH3_64bits_update(state, changed.data() + begin, end - begin);
  }
  header.seal = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  put_header();
  return changed;
}

std::vector<json::json_pointer> all_places(const json& value,
                                           const json::json_pointer& at = json::json_pointer()) {
  std::vector<json::json_pointer> places{at};
  const auto add = [&](const json::json_pointer& place, const json& inside) {
    const auto below = all_places(inside, place);
    places.insert(places.end(), below.begin(), below.end());
  };
  if (value.is_object()) {
    for (const auto& [key, inside] : value.items()) add(at / key, inside);
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); i++) add(at / i, value[i]);
  }
  return places;
}

const std::vector<json>& hostile_values() {
  static const std::vector<json> values{nullptr,
                                        -1,
                                        0,
                                        1,
                                        7,
                                        4096,
                                        1LL << 40,
                                        INT64_MAX,
                                        INT64_MIN,
                                        UINT64_MAX,
                                        1e300,
                                        0.5,
                                        true,
                                        "",
                                        "../index.h5",
                                        json::array(),
                                        json::object(),
                                        json::array({1, 2, 3})};
  return values;
}

TEST_F(Damage, ResealingTheSameManifestChangesNothing) {
  for (const auto& [name, bytes] : files_) EXPECT_EQ(resealed(bytes, manifest_of(bytes)), bytes);
}

// Every value of every manifest replaced, under a seal that fits: nothing but DataError, and no
// reading or allocating beyond the file (the sanitizer build of this test would say so).
TEST_F(Damage, HostileManifestsAreRefusedOrHarmless) {
  int refused = 0, harmless = 0;
  for (const auto& [name, bytes] : files_) {
    const json manifest = manifest_of(bytes);
    for (const json::json_pointer& place : all_places(manifest)) {
      for (const json& value : hostile_values()) {
        json changed = manifest;
        changed[place] = value;
        write_bytes(folder_ / name, resealed(bytes, changed));
        verify_checkpoint(folder_);
        bool opened = true;
        try {
          const Checkpoint checkpoint = Checkpoint::open(folder_);
          std::vector<float> values(static_cast<size_t>(checkpoint.table().size()));
          for (const FlatKind kind : {FlatKind::weights, FlatKind::exp_avg}) {
            checkpoint.read(kind, 0,
                            Tensor(values.data(), DType::fp32, {checkpoint.table().size()}));
          }
        } catch (const DataError&) {
          opened = false;
        }
        (opened ? harmless : refused)++;
      }
    }
    restore();
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(harmless, 100);  // options, say, may have any value
}

// The same for a file that stands alone; `read` opens it and reads all of it.
void expect_refused_or_harmless(const fs::path& path, const std::function<void()>& read) {
  const std::string bytes = bytes_of(path);
  const json manifest = manifest_of(bytes);
  ASSERT_EQ(resealed(bytes, manifest), bytes);
  for (size_t i = 0; i < bytes.size(); i += i < 64 ? 1 : 211) {
    std::string flipped = bytes;
    flipped[i] = static_cast<char>(flipped[i] ^ 16);
    write_bytes(path, flipped);
    ASSERT_THAT(verify_checkpoint(path), Not(IsEmpty())) << i;
    ASSERT_THROW(read(), DataError) << i;
  }
  for (const json::json_pointer& place : all_places(manifest)) {
    for (const json& value : hostile_values()) {
      json changed = manifest;
      changed[place] = value;
      write_bytes(path, resealed(bytes, changed));
      try {
        read();
      } catch (const DataError&) {
        continue;
      }
    }
  }
}

TEST_F(Damage, HostileModelFilesAreRefusedOrHarmless) {
  const fs::path path = run_ / "model.h5";
  export_h5(Checkpoint::open(folder_), path);
  expect_refused_or_harmless(path, [&] {
    const Checkpoint checkpoint = Checkpoint::open(path);
    read_floats(checkpoint, FlatKind::weights, 0, checkpoint.table().size());
  });
}

TEST_F(Damage, HostileQuantizedFilesAreRefusedOrHarmless) {
  const TemporaryFolder folder;
  const fs::path path = folder / "quantized.h5";
  write_quantized(checkpoint_in(folder.path(), quantizable_gpt2()), kEightBits,
                  some_matrices(quantizable_gpt2(), kEightBits), path);
  expect_refused_or_harmless(path, [&] { read_quantized(Checkpoint::open(path)); });
}

}  // namespace
}  // namespace lockstep
