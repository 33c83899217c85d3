#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>

#include "tests/checkpoints/support.h"

// What the writer does when saving goes wrong: it says what and where, once; what stood under a
// final name stays good; nothing is left lying about; and the next save works.
namespace lockstep {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class Writer : public testing::Test {
 protected:
  Writer() : model_(tiny_gpt2()), size_(ParameterTable(model_).size()) {}

  Slice slice(int64_t step) const { return slice_of(0, size_, step); }
  fs::path partial(int64_t step) const {
    return run_ / fmt::format("checkpoints/.step-{:08}.partial", step);
  }
  void expect_only(std::vector<int64_t> steps) const {
    EXPECT_EQ(list_checkpoints(run_.path()), steps);
    const fs::directory_iterator entries(run_ / "checkpoints");
    EXPECT_EQ(std::distance(begin(entries), end(entries)), std::ssize(steps));
    if (!steps.empty()) {
      EXPECT_THAT(verify_checkpoint(run_.path()), IsEmpty());
    }
  }

  const ModelConfig model_;
  const int64_t size_;
  TemporaryFolder run_;
};

TEST_F(Writer, KeepsWhatWasThereWhenSaveReturned) {
  CheckpointWriter writer(run_.path(), 0, 1, 0);
  writer.prepare(1);
  Slice values = slice(1);
  writer.save(info_of(model_, 1), {values.view});
  for (auto& kind : values.values) std::fill(kind.begin(), kind.end(), -1.0f);
  writer.wait();
  EXPECT_EQ(read_floats(Checkpoint::open(run_.path()), FlatKind::exp_avg, 5, 6)[0],
            value_at(FlatKind::exp_avg, 5, 1));
}

TEST_F(Writer, PollTellsWhenItIsDone) {
  CheckpointWriter writer(run_.path(), 0, 1, 0);
  EXPECT_TRUE(writer.poll());
  writer.prepare(1);
  writer.save(info_of(model_, 1), {slice(1).view});
  while (!writer.poll()) std::this_thread::sleep_for(milliseconds(1));
  expect_only({1});
}

TEST_F(Writer, OneSaveWaitsForTheOther) {
  CheckpointWriter writer(run_.path(), 0, 1, 0);
  for (const int64_t step : {1, 2, 3}) {
    writer.prepare(step);
    writer.save(info_of(model_, step), {slice(step).view});
  }
  writer.wait();
  expect_only({1, 2, 3});
}

TEST_F(Writer, ARunFolderThatCannotBeWritten) {
  write_bytes(run_ / "file", "not a folder");
  CheckpointWriter writer(run_ / "file", 0, 1, 0);
  EXPECT_THAT(message_of([&] { writer.prepare(1); }),
              AllOf(HasSubstr("file/checkpoints"), HasSubstr("Not a directory")));
}

TEST_F(Writer, AFolderThatVanishes) {
  CheckpointWriter writer(run_.path(), 0, 1, 0);
  writer.prepare(1);
  fs::remove_all(partial(1));
  writer.save(info_of(model_, 1), {slice(1).view});
  EXPECT_THAT(message_of([&] { writer.wait(); }),
              AllOf(HasSubstr(".step-00000001.partial"), HasSubstr("No such file or directory")));
  writer.wait();  // said once
  expect_only({});
  writer.prepare(2);
  writer.save(info_of(model_, 2), {slice(2).view});
  writer.wait();
  expect_only({2});
}

TEST_F(Writer, AnotherWorkerThatFails) {
  save_as_workers(run_.path(), info_of(model_, 1), {0, size_});
  CheckpointWriter first(run_.path(), 0, 2, 0), second(run_.path(), 1, 2, 0);
  first.prepare(2);
  // Something is in the way of the second worker's file.
  fs::create_directory(partial(2) / "shard-00001-of-00002.h5.unfinished");
  first.save(info_of(model_, 2), {slice_of(0, 10, 2).view});
  second.save(info_of(model_, 2), {slice_of(10, size_, 2).view});
  EXPECT_THAT(message_of([&] { second.wait(); }), HasSubstr("Is a directory"));
  EXPECT_THAT(message_of([&] { first.wait(); }),
              AllOf(HasSubstr("worker 1"), HasSubstr("Is a directory")));
  expect_only({1});
}

TEST_F(Writer, AnotherWorkerThatNeverComes) {
  CheckpointWriter writer(run_.path(), 0, 2, 0, milliseconds(300));
  writer.prepare(1);
  writer.save(info_of(model_, 1), {slice_of(0, 10, 1).view});
  EXPECT_THAT(message_of([&] { writer.wait(); }),
              AllOf(HasSubstr("worker 1"), HasSubstr("shard-00001-of-00002.h5")));
  expect_only({});
}

TEST_F(Writer, AShardOfAnotherStepIsNotTakenIn) {
  CheckpointWriter first(run_.path(), 0, 2, 0);
  save_as_workers(run_.path(), info_of(model_, 1), {0, 10, size_});
  first.prepare(2);
  fs::copy(run_ / "checkpoints/step-00000001/shard-00001-of-00002.h5", partial(2));
  first.save(info_of(model_, 2), {slice_of(0, 10, 2).view});
  EXPECT_THAT(message_of([&] { first.wait(); }), HasSubstr("belongs to step 1, not 2"));
  expect_only({1});
}

TEST_F(Writer, ClearsWhatADeadRunLeft) {
  fs::create_directories(partial(7) / "and");
  fs::create_directories(run_ / "checkpoints/.step-00000003.removed");
  CheckpointWriter writer(run_.path(), 0, 1, 0);
  writer.prepare(8);
  writer.save(info_of(model_, 8), {slice(8).view});
  writer.wait();
  expect_only({8});
}

// A file system of its own, of a size given in bytes.
class SmallDisk {
 public:
  explicit SmallDisk(const fs::path& folder, int64_t size) : folder_(folder) {
    fs::create_directories(folder);
    mounted_ =
        ::mount("tmpfs", folder.c_str(), "tmpfs", 0, fmt::format("size={}", size).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  fs::path folder_;
  bool mounted_ = false;
};

TEST_F(Writer, AFullDisk) {
  constexpr int64_t kPage = 4096;
  // What one checkpoint of the larger model takes, in pages, with its folder.
  ModelConfig large = model_;
  large.vocab_size = 3000;
  const int64_t large_size = ParameterTable(large).size();
  save_as_workers(run_ / "measured", info_of(large, 2), {0, large_size / 2, large_size});
  int64_t pages = 1;
  for (const auto& entry : fs::directory_iterator(run_ / "measured/checkpoints/step-00000002")) {
    pages += static_cast<int64_t>(entry.file_size() + kPage - 1) / kPage;
  }
  // From a disk that holds next to nothing beside the first checkpoint to one that holds all.
  int failed = 0, saved = 0;
  for (int64_t room = 0; room < pages + 40; room += 7) {
    const fs::path run = run_ / fmt::format("disk-{}", room);
    const SmallDisk disk(run, (100 + room) * kPage);
    if (!disk.mounted()) GTEST_SKIP() << "a file system can only be mounted as root";
    save_as_workers(run, info_of(model_, 1), {0, size_});
    const auto space = fs::space(run);
    write_bytes(
        run / "filler",
        std::string(static_cast<size_t>(static_cast<int64_t>(space.free) - room * kPage), 'x'));
    CheckpointWriter first(run, 0, 2, 0, milliseconds(1000)), second(run, 1, 2, 0);
    std::string message;
    try {
      first.prepare(2);
      first.save(info_of(large, 2), {slice_of(0, large_size / 2, 2).view});
      second.save(info_of(large, 2), {slice_of(large_size / 2, large_size, 2).view});
      first.wait();
    } catch (const DataError& error) {
      message = error.what();
    }
    try {
      second.wait();
    } catch (const DataError&) {
      EXPECT_NE(message, "");
    }
    if (message.empty()) {
      saved++;
      EXPECT_THAT(list_checkpoints(run), ElementsAre(1, 2));
    } else {
      failed++;
      EXPECT_THAT(message, AnyOf(HasSubstr("No space left on device"), HasSubstr("disk is full")));
      EXPECT_THAT(list_checkpoints(run), ElementsAre(1));
      EXPECT_FALSE(fs::exists(run / "checkpoints/.step-00000002.partial"));
    }
    EXPECT_THAT(verify_checkpoint(run), IsEmpty());
    // With room again, the next one is saved.
    fs::remove(run / "filler");
    save_as_workers(run, info_of(model_, 3), {0, size_});
    EXPECT_EQ(newest_good_checkpoint(run), run / "checkpoints/step-00000003");
  }
  EXPECT_GT(failed, 5);
  EXPECT_GT(saved, 2);
}

}  // namespace
}  // namespace lockstep
