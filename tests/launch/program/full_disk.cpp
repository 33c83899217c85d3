#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;

World& world = World::get();

// A small file system of this process's own, so that nothing is left of it.
struct FullDisk : testing::Test {
  void SetUp() override {
    disk = world.path("disk");
    fs::create_directories(disk);
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=512k") != 0) {
      GTEST_SKIP() << "file systems cannot be mounted here";
    }
    mounted = true;
  }
  void TearDown() override {
    if (mounted) ::umount(disk.c_str());
  }
  fs::path disk;
  bool mounted = false;
};

TEST_F(FullDisk, Prepare) {
  std::string text;
  while (text.size() < 800'000) text += read_text(world.text());
  const fs::path input = world.write("large.txt", text);
  for (const char* tokenizer : {"bytes", "train"}) {
    expect_error(run({"prepare", "--input", input, "--output", disk / "data", "--tokenizer",
                      tokenizer, "--vocab-size", "257"}),
                 3, {"cannot write", "No space left on device"});
    EXPECT_TRUE(fs::is_empty(disk));
  }
}

// A checkpoint of this model takes about 200 KiB: the disk holds two of the five.
TEST_F(FullDisk, SavingLeavesTheOlderCheckpointIntact) {
  for (const int workers : {0, 2}) {
    SCOPED_TRACE(workers);
    const fs::path folder = disk / fmt::format("run_{}", workers);
    const Result result =
        run(train_arguments(world.data(), folder,
                            {"--steps", "100", "--checkpoint-every", "20", "--keep", "0"}),
            {.workers = workers});
    expect_error(result, 3, {"No space left on device"});
    const std::vector<std::string> saved = step_folders(folder);
    ASSERT_GE(saved.size(), 1u);
    EXPECT_EQ(saved[0], "step-00000020");
    EXPECT_EQ(run({"checkpoint", "verify", folder}).code, 0);

    // With room again, it goes on.
    const fs::path elsewhere = world.copy(folder, fmt::format("moved_{}", workers));
    const Result resumed = run({"train", "--run", elsewhere}, {.workers = workers});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_EQ(step_folders(elsewhere).back(), "step-00000100");
    fs::remove_all(folder);
  }
}

TEST_F(FullDisk, Export) {
  const fs::path filler = disk / "filler";
  {
    std::string most(480 << 10, 'x');
    world.write("disk/filler", most);
  }
  for (const char* format : {"h5", "hf"}) {
    const fs::path output = disk / format;
    expect_error(run({"checkpoint", "export", world.run(), "--format", format, "--output", output}),
                 3, {"No space left on device"});
    EXPECT_FALSE(fs::exists(output));
  }
}

}  // namespace
}  // namespace lockstep::black_box
