#include <fmt/format.h>

#include <cstdlib>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

World& world = World::get();

// Two workers, of which the second says these words to a shell before it starts, and sees by itself
// what they mount: as on a host of its own.
Options apart(const std::string& words) {
  return {.workers = 2,
          .prelude = fmt::format("[ $OMPI_COMM_WORLD_RANK = 0 ] || "
                                 "exec unshare -m sh -c '{}\nexec \"$@\"' sh \"$@\"",
                                 words)};
}

std::string own_disk(const fs::path& folder) {
  return fmt::format("mount -t tmpfs tmpfs {}", folder.string());
}

Arguments arguments(const fs::path& folder) {
  return train_arguments(world.data(), folder, {"--steps", "42"});
}

struct SharedRun : testing::Test {
  void SetUp() override {
    fs::create_directories(folder);
    const std::string mount = "unshare -m " + own_disk(folder) + " 2>/dev/null";
    if (std::system(mount.c_str()) != 0) GTEST_SKIP() << "file systems cannot be mounted here";
  }
  const fs::path folder = world.path("of_one_host");
};

TEST_F(SharedRun, ANewRunThatOneHostDoesNotSee) {
  const fs::path run_folder = folder / "run";
  expect_error(run(arguments(run_folder), apart(own_disk(folder))), 3,
               {"worker 1 on ", "does not see " + (run_folder / "lease.json").string(),
                "worker 0 on ", "choose a --run on a file system that all workers share"});
  EXPECT_FALSE(fs::exists(run_folder / "lease.json"));
  // It begins where it can.
  EXPECT_EQ(run(arguments(run_folder), {.workers = 2}).code, 0);
}

TEST_F(SharedRun, ARunToGoOnWith) {
  const fs::path run_folder = world.copy(world.run(), "only_here");
  const std::string status = read_text(run_folder / "status.json");
  expect_error(run(arguments(run_folder), apart(own_disk(run_folder))), 3,
               {"worker 1 on ", "does not see " + (run_folder / "lease.json").string()});
  EXPECT_EQ(read_text(run_folder / "status.json"), status);
  EXPECT_FALSE(fs::exists(run_folder / "lease.json"));
}

// As where the client of a network file system keeps an old state for a while.
TEST_F(SharedRun, IsWaitedForForAWhile) {
  const fs::path seen_late = folder / "late", run_folder = seen_late / "run";
  const fs::path aside = world.path("aside");
  fs::create_directories(seen_late), fs::create_directories(aside);
  const std::string words = fmt::format(
      "mount --bind {0} {1}; {2}\n"
      "timeout 60 sh -c \"until [ -e {1}/run/lease.json ]; do sleep 0.1; done; sleep 0.5; "
      "umount -l {0}\" &",
      seen_late.string(), aside.string(), own_disk(seen_late));
  const Result result = run(arguments(run_folder), apart(words));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(run({"checkpoint", "verify", run_folder}).code, 0);
}

}  // namespace
}  // namespace lockstep::black_box
