#include <fmt/format.h>

#include <set>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

World& world = World::get();

Result train(const fs::path& run_folder, const Arguments& more, int workers) {
  Arguments arguments{"--steps", "6", "--checkpoint-every", "4", "--evaluate-every", "4"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run(train_arguments(world.data(), run_folder, arguments), {.workers = workers});
}

TEST(ProfileOption, ShowsWhereTheTimeOfStepsGoesAndChangesNothing) {
  const fs::path plain = world.path("plain");
  ASSERT_EQ(train(plain, {}, 2).code, 0);
  for (const int workers : {1, 2}) {
    const fs::path folder = world.path(fmt::format("profiled-{}", workers)),
                   file = world.path(fmt::format("trace-{}.json", workers));
    const Result result = train(folder, {"--profile", file}, workers);
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("steps 3 to 5 are profiled"));
    for (const char* part :
         {"GFLOP/s in products", "layernorm_backward", "adam_update", "attention_forward",
          "in no kernel", "\n  step ", "  evaluation ", "  checkpoint ", "backward"}) {
      EXPECT_THAT(result.out, HasSubstr(part));
    }
    EXPECT_EQ(run({"checkpoint", "diff", plain, folder}).code, 0);

    std::set<int> processes;
    std::set<std::string> names;
    const json trace = json::parse(read_text(file));
    for (const json& event : trace.at("traceEvents")) {
      processes.insert(event.at("pid").get<int>());
      names.insert(event.at("name").get<std::string>());
    }
    EXPECT_EQ(static_cast<int>(processes.size()), workers);
    for (const char* name : {"step 3", "step 5", "layer 2", "forward", "update"}) {
      EXPECT_TRUE(names.contains(name)) << name;
    }
    EXPECT_FALSE(names.contains("step 6"));
    EXPECT_FALSE(names.contains("step 2"));
    EXPECT_EQ(names.contains("all_to_all"), workers == 2);
  }
}

TEST(ProfileOption, IsRefusedWhereItCannotWork) {
  const auto refused = [](const Arguments& more, const std::vector<std::string>& parts) {
    expect_error(train(world.path("refused"), more, 0), 2, parts);
    EXPECT_FALSE(fs::exists(world.path("refused") / "metrics.jsonl"));
  };
  const fs::path nowhere = world.path("nowhere") / "trace.json", file = world.path("trace.json");
  refused({"--profile", nowhere}, {"--profile", nowhere.string(), "cannot be written"});
  refused({"--profile", file, "--profile-steps", "5"}, {"6 of the run's 6 steps", "7 are needed"});
  refused({"--profile-steps", "2"}, {"--profile-steps", "add it"});
  refused({"--profile", file, "--dry-run"}, {"--dry-run", "--profile"});
}

}  // namespace
}  // namespace lockstep::black_box
