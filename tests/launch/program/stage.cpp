#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

World& world = World::get();

Arguments arguments(const fs::path& run, const fs::path& disk) {
  return train_arguments(world.data(), run, {"--steps", "5", "--stage", disk});
}

// The only folder in `disk`, which is the copy.
fs::path copy_in(const fs::path& disk) {
  for (const auto& entry : fs::directory_iterator(disk)) {
    if (entry.is_directory()) return entry.path();
  }
  return {};
}

TEST(Stage, CopiesOnceAndTrainsTheSame) {
  const fs::path disk = world.path("disk");
  EXPECT_EQ(run(train_arguments(world.data(), world.path("unstaged"), {"--steps", "5"})).code, 0);
  const Result first = run(arguments(world.path("staged"), disk), {.workers = 2});
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(first.err, HasSubstr("the dataset was copied to " + copy_in(disk).string()));
  const Result same = run({"checkpoint", "diff", world.path("staged"), world.path("unstaged")});
  EXPECT_EQ(same.code, 0) << same.out;

  // It is the copy that is read, and not said to a later start, perhaps elsewhere.
  EXPECT_THAT(read_text(world.path("staged") / "run.cfg"),
              testing::AllOf(HasSubstr("data = " + world.data().string()),
                             testing::Not(HasSubstr("stage"))));
  flip_a_byte(copy_in(disk) / "train-00000.bin", 0.5);
  const Result again = run(arguments(world.path("again"), disk), {.workers = 2});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr("was copied to"));
  EXPECT_EQ(read_text(copy_in(disk) / "train-00000.bin"),
            read_text(world.data() / "train-00000.bin"));
  const Result there = run(arguments(world.path("there"), disk), {.workers = 2});
  EXPECT_THAT(there.err, HasSubstr("is there already"));
}

TEST(Stage, TwoJobsAtOnce) {
  const fs::path disk = world.path("shared_disk");
  Process one(arguments(world.path("one"), disk)), two(arguments(world.path("two"), disk));
  const std::string err = one.wait().err + two.wait().err;
  EXPECT_THAT(err, testing::AllOf(HasSubstr("was copied to"), HasSubstr("is there already")));
  EXPECT_EQ(run({"checkpoint", "diff", world.path("one"), world.path("two")}).code, 0);
}

TEST(Stage, WhereNothingCanBeWritten) {
  const fs::path file = world.write("a_file", "");
  for (const int workers : {0, 2}) {
    expect_error(run(arguments(world.path("no_run"), file), {.workers = workers}), 3,
                 {"cannot make " + file.string(), "Not a directory"});
  }
  EXPECT_FALSE(fs::exists(world.path("no_run")));
}

TEST(Stage, WhereTheDiskIsFull) {
  const fs::path disk = world.path("small_disk");
  fs::create_directories(disk);
  if (::unshare(CLONE_NEWNS) != 0 ||
      ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=16k") != 0) {
    GTEST_SKIP() << "file systems cannot be mounted here";
  }
  expect_error(run(arguments(world.path("no_run"), disk), {.workers = 2}), 3,
               {"cannot write " + disk.string(), "No space left on device"});
  EXPECT_EQ(copy_in(disk), fs::path());
  ::umount(disk.c_str());
}

}  // namespace
}  // namespace lockstep::black_box
