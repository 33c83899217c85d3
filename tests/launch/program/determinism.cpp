#include <algorithm>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

struct Determinism : testing::Test {
  World& world = World::get();
  fs::path copy() {
    fs::remove_all(world.path("copy"));
    return world.copy(world.run(), "copy");
  }
  static std::string step(const fs::path& run, const char* name) {
    return (run / "checkpoints" / name).string() + "/";  // as tab completion leaves it
  }
};

TEST_F(Determinism, AReplayAgreesOnAnyWorkers) {
  const fs::path run_folder = copy();
  const Arguments replay{"checkpoint", "verify", "--replay", step(run_folder, "step-00000020"),
                         step(run_folder, "step-00000040")};
  for (const int workers : {0, 2, 3}) {
    const Result result = run(replay, {.workers = workers});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr("steps 21 to 40 trained again: every bit of"));
  }
}

// What the run was continued with later is not what its earlier steps were trained with.
TEST_F(Determinism, AReplayOfARunThatWentOnLonger) {
  const fs::path run_folder = copy();
  ASSERT_EQ(run({"train", "--run", run_folder, "--steps", "50", "--keep", "0"}).code, 0);
  const Result result = run({"checkpoint", "verify", "--replay", step(run_folder, "step-00000020"),
                             step(run_folder, "step-00000040")});
  EXPECT_EQ(result.code, 0) << result.out << result.err;
}

TEST_F(Determinism, AReplayNamesWhatDiffers) {
  const fs::path run_folder = copy();
  std::string metrics = read_text(run_folder / "metrics.jsonl");
  const size_t digit = metrics.find('.', metrics.find("\"step\":33,")) + 4;
  metrics[digit] = metrics[digit] == '1' ? '2' : '1';
  fs::remove(run_folder / "metrics.jsonl");
  world.write("copy/metrics.jsonl", metrics);
  const Result result = run({"checkpoint", "verify", "--replay", step(run_folder, "step-00000020"),
                             step(run_folder, "step-00000040")});
  EXPECT_EQ(result.code, 1) << result.err;
  EXPECT_THAT(result.out, HasSubstr("step 33 is the first that differs: loss"));
}

TEST_F(Determinism, ReplaysThatCannotBe) {
  const fs::path run_folder = copy(), model = world.path("replayed.h5");
  ASSERT_EQ(run({"checkpoint", "export", run_folder, "--format", "h5", "--output", model}).code, 0);
  const std::string from = step(run_folder, "step-00000020"),
                    to = step(run_folder, "step-00000040");
  expect_error(run({"checkpoint", "verify", "--replay", to, from}), 2,
               {"name the earlier one first"});
  expect_error(run({"checkpoint", "verify", "--replay", from, model}), 2, {"holds weights only"});
  expect_error(run({"checkpoint", "verify", "--replay", from, to}, {.workers = 4}), 2,
               {"the 6 virtual workers of the run cannot be dealt to 4 workers"});
  fs::remove(run_folder / "run.cfg");
  expect_error(run({"checkpoint", "verify", "--replay", from, to}), 3, {"run.cfg is missing"});
}

// All-reduce, bf16 on the way, comparing replicas: each trains, and says in run.cfg what it was.
TEST_F(Determinism, OtherReductionsTrain) {
  for (const Arguments& more : std::vector<Arguments>{
           {"--no-deterministic"}, {"--gradient-dtype", "bf16"}, {"--check-replicas", "2"}}) {
    const fs::path folder = world.path("reduced");
    fs::remove_all(folder);
    Arguments arguments = train_arguments(world.data(), folder, {"--steps", "4"});
    if (more.front() == "--no-deterministic") {
      const auto place = std::find(arguments.begin(), arguments.end(), "--virtual-workers");
      arguments.erase(place, place + 2);
      arguments.push_back("--no-deterministic");
    } else {
      arguments.insert(arguments.end(), more.begin(), more.end());
    }
    const Result result = run(arguments, {.workers = 2});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(step_folders(folder), std::vector<std::string>{"step-00000004"});
    const std::string expected = more.front() == "--no-deterministic"
                                     ? "reduce = all-reduce"
                                     : more[0].substr(2) + " = " + more[1];
    EXPECT_THAT(read_text(folder / "run.cfg"), HasSubstr(expected));
  }
}

}  // namespace
}  // namespace lockstep::black_box
