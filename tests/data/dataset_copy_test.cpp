#include "data/dataset_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/file.h"
#include "data/dataset.h"
#include "data/prepare.h"
#include "tests/data/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class DatasetCopyTest : public testing::Test {
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
  static int64_t finish(DatasetCopy& copy) {
    while (!copy.advance()) {
    }
    return copy.copied_bytes();
  }
  int64_t make() {
    DatasetCopy copy(data_, disk_);
    return finish(copy);
  }
  int64_t size(const fs::path& file) const {
    return static_cast<int64_t>(fs::file_size(data_ / file));
  }
  void expect_the_same() const {
    for (const auto& file : fs::directory_iterator(data_)) {
      EXPECT_EQ(read_file(copy_ / file.path().filename()), read_file(file.path())) << file.path();
    }
  }
  TemporaryFolder folder_;
  fs::path data_ = folder_.path() / "data", disk_ = folder_.path() / "disk" / "deep", copy_;
};

TEST_F(DatasetCopyTest, CopiesOnceAndRepairsWhatIsDamaged) {
  copy_ = DatasetCopy::path_of(data_ / "", disk_);
  int64_t all = 0;
  for (const auto& file : fs::directory_iterator(data_)) {
    all += static_cast<int64_t>(file.file_size());
  }
  EXPECT_EQ(make(), all);
  expect_the_same();
  EXPECT_EQ(make(), 0);

  const fs::path shard = "train-00001.bin";
  std::string content = read_file(copy_ / shard);
  content[2000] ^= 1;  // the same size: only the checksum tells
  write_file_atomically(copy_ / shard, content);
  EXPECT_EQ(make(), size(shard));
  fs::resize_file(copy_ / shard, 100);
  EXPECT_EQ(make(), size(shard));
  fs::remove(copy_ / "dataset.json");  // as of a process that was killed before its end
  write_file_atomically(copy_ / "dataset.json.tmp", "half of");
  EXPECT_EQ(make(), size("dataset.json"));
  expect_the_same();
}

TEST_F(DatasetCopyTest, ADamagedOriginalIsNoCopy) {
  copy_ = DatasetCopy::path_of(data_, disk_);
  std::string content = read_file(data_ / "train-00001.bin");
  content[2000] ^= 1;
  write_file_atomically(data_ / "train-00001.bin", content);
  try {
    make();
    ADD_FAILURE() << "no error";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("data/train-00001.bin is damaged"));
  }
  EXPECT_FALSE(fs::exists(copy_));
}

// What another process copied, and perhaps reads, stays; but it is no dataset any more.
TEST_F(DatasetCopyTest, AFailureRemovesOnlyWhatItCopied) {
  make();
  copy_ = DatasetCopy::path_of(data_, disk_);
  for (const char* shard : {"train-00000.bin", "train-00002.bin"}) fs::remove(copy_ / shard);
  fs::resize_file(data_ / "train-00002.bin", 100);
  EXPECT_THROW(make(), DataError);
  EXPECT_TRUE(fs::exists(copy_ / "train-00001.bin"));
  for (const char* file : {"train-00000.bin", "train-00002.bin", "dataset.json"}) {
    EXPECT_FALSE(fs::exists(copy_ / file)) << file;
  }
}

// Another dataset of the same name, or the same one prepared anew, is not taken for this one.
TEST_F(DatasetCopyTest, AnotherDatasetIsAnotherCopy) {
  make();
  const fs::path first = DatasetCopy::path_of(data_, disk_);
  std::string description = read_file(data_ / "dataset.json");
  write_file_atomically(data_ / "dataset.json", description + "\n");
  EXPECT_GT(make(), 0);
  EXPECT_NE(DatasetCopy::path_of(data_, disk_), first);
}

TEST_F(DatasetCopyTest, OneOfTwoAtOnceCopies) {
  DatasetCopy first(data_, disk_), second(data_, disk_);
  EXPECT_FALSE(first.advance());
  for (int i = 0; i < 3; i++) EXPECT_FALSE(second.advance());
  EXPECT_GT(first.copied_bytes(), 0);
  EXPECT_EQ(second.copied_bytes(), 0);
  finish(first);
  EXPECT_EQ(finish(second), 0);
}

}  // namespace
}  // namespace lockstep
