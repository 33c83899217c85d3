#include "data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/file.h"
#include "data/prepare.h"
#include "data/shard.h"
#include "tests/data/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

// A small good dataset that a test then damages.
class DatasetFolder : public testing::Test {
 protected:
  void SetUp() override {
    PrepareConfig config;
    std::string text;
    for (int i = 0; i < 500; i++) text += "line " + std::to_string(i) + "\n";
    config.inputs = {folder_.write("text.txt", text)};
    config.output = data_;
    config.tokenizer = "bytes";
    config.max_shard_tokens = 1500;
    prepare(config);
  }
  void damage(const char* file, size_t byte, const std::string& with) {
    std::string content = read_file(data_ / file);
    content.replace(byte, with.size(), with);
    folder_.write(fs::path("data") / file, content);
  }
  template <class Change>
  void change_description(const Change& change) {
    json description = json::parse(read_file(data_ / "dataset.json"));
    change(description);
    folder_.write("data/dataset.json", description.dump());
  }
  std::string error() {
    try {
      const Dataset dataset = Dataset::open(data_);
      for (const char* name : {"train", "validation"}) {
        const TokenStream& split = dataset.split(name);
        std::vector<int32_t> ids(static_cast<size_t>(split.size()));
        split.copy(0, split.size(), ids.data());
      }
    } catch (const DataError& failure) {
      return failure.what();
    }
    return "no error";
  }
  TemporaryFolder folder_;
  fs::path data_ = folder_.path() / "data";
};

std::string int32_bytes(int32_t value) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &value, 4);
  return bytes;
}

TEST_F(DatasetFolder, OpensAndSaysWhatItHas) {
  EXPECT_EQ(error(), "no error");
  const Dataset dataset = Dataset::open(data_);
  EXPECT_EQ(dataset.tokenizer().vocab_size(), 257);
  EXPECT_EQ(dataset.tokenizer_json(), read_file(data_ / "tokenizer.json"));
  EXPECT_EQ(dataset.split("train").bytes() + dataset.split("validation").bytes(),
            static_cast<int64_t>(fs::file_size(folder_.path() / "text.txt")));
  try {
    dataset.split("test");
    FAIL();
  } catch (const DataError& failure) {
    EXPECT_THAT(failure.what(), HasSubstr("no split \"test\"; it has: train, validation"));
  }
}

TEST_F(DatasetFolder, RecordsTheChecksumOfEachShard) {
  const json description = json::parse(read_file(data_ / "dataset.json"));
  int shards = 0;
  for (const auto& split : description.at("splits")) {
    for (const auto& shard : split.at("shards")) {
      const std::string content = read_file(data_ / shard.at("file").get<std::string>());
      EXPECT_EQ(shard.at("size_bytes"), content.size());
      EXPECT_EQ(shard.at("xxh3"), xxh3_hex(std::as_bytes(std::span(content))));
      shards++;
    }
  }
  EXPECT_EQ(shards, 4);
}

TEST_F(DatasetFolder, CopyChecksItsRange) {
  const Dataset dataset = Dataset::open(data_);
  const TokenStream& split = dataset.split("train");
  std::vector<int32_t> ids(10);
  EXPECT_NO_THROW(split.copy(split.size() - 10, 10, ids.data()));
  EXPECT_NO_THROW(split.copy(split.size(), 0, ids.data()));
  EXPECT_THROW(split.copy(split.size() - 9, 10, ids.data()), std::logic_error);
  EXPECT_THROW(split.copy(-1, 1, ids.data()), std::logic_error);
}

TEST_F(DatasetFolder, NamesWhatIsMissing) {
  fs::rename(data_ / "train-00001.bin", data_ / "away");
  EXPECT_THAT(error(), HasSubstr("train-00001.bin: No such file"));
  fs::remove(data_ / "tokenizer.json");
  EXPECT_THAT(error(), HasSubstr("tokenizer.json: No such file"));
  fs::remove(data_ / "dataset.json");
  EXPECT_THAT(error(), HasSubstr("is not a dataset: it has no dataset.json"));
  fs::remove_all(data_);
  EXPECT_THAT(error(), HasSubstr("no dataset folder"));
}

TEST_F(DatasetFolder, RefusesDamagedShards) {
  const std::string good = read_file(data_ / "train-00001.bin");
  const auto expect = [&](const char* message) {
    EXPECT_THAT(error(), HasSubstr("train-00001.bin"));
    EXPECT_THAT(error(), HasSubstr(message));
    folder_.write("data/train-00001.bin", good);
  };
  fs::resize_file(data_ / "train-00001.bin", good.size() - 1);
  expect("is truncated: 4023 bytes, its header promises 1500 tokens, 4024 bytes");
  fs::resize_file(data_ / "train-00001.bin", 100);
  expect("is truncated: 100 bytes, its header alone has 1024");
  fs::resize_file(data_ / "train-00001.bin", 0);
  expect("truncated");
  fs::resize_file(data_ / "train-00001.bin", good.size() + 2);
  expect("is damaged");
  damage("train-00001.bin", 0, int32_bytes(20240521));
  expect("magic 20240521 and version 1, not 20240520 and 1");
  damage("train-00001.bin", 4, int32_bytes(2));
  expect("version 2");
  damage("train-00001.bin", 8, int32_bytes(-1));
  expect("is damaged");
  damage("train-00001.bin", 1024 + 2 * 700, std::string("\x01\x01", 2));
  expect("holds token id 257");
  fs::copy_file(data_ / "train-00000.bin", data_ / "train-00001.bin",
                fs::copy_options::overwrite_existing);
  EXPECT_EQ(error(), "no error");  // as long, and of the same vocabulary
}

TEST_F(DatasetFolder, RefusesADamagedDescription) {
  const std::string good = read_file(data_ / "dataset.json");
  const auto expect = [&](const auto& change, const char* message) {
    change_description(change);
    EXPECT_THAT(error(), HasSubstr(message));
    folder_.write("data/dataset.json", good);
  };
  expect([](json& d) { d["format"] = 2; }, "is of dataset format 2; this program reads format 1");
  expect([](json& d) { d.erase("splits"); }, "splits");
  expect([](json& d) { d["splits"] = 3; }, "dataset.json");
  expect([](json& d) { d["splits"]["train"]["tokens"] = 7; }, "dataset.json says 7");
  expect([](json& d) { d["splits"]["train"]["shards"][1]["tokens"] = "x"; }, "dataset.json says");
  expect([](json& d) { d["tokenizer"]["xxh3"] = "0"; }, "not the tokenizer that this dataset");
  expect([](json& d) { d = json::array(); }, "dataset.json");
  folder_.write("data/dataset.json", good.substr(0, good.size() / 2));
  EXPECT_THAT(error(), HasSubstr("dataset.json is not valid JSON"));
}

}  // namespace
}  // namespace lockstep
