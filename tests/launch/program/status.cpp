#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using testing::AllOf;
using testing::HasSubstr;

World& world = World::get();

ordered_json status_of(const fs::path& folder) {
  const Result result = run({"status", folder, "--json"});
  EXPECT_EQ(result.code, 0) << result.err;
  return ordered_json::parse(result.out);
}

// A run that goes on until it is told to stop.
std::unique_ptr<Process> endless(const fs::path& folder, const Arguments& more = {},
                                 const Options& options = {}) {
  Arguments all{"--steps", "1000000", "--evaluate-every", "0", "--log-every", "1000000"};
  all.insert(all.end(), more.begin(), more.end());
  return std::make_unique<Process>(train_arguments(world.data(), folder, all), options);
}

void wait_for(const fs::path& file, Process& process) {
  while (!fs::exists(file)) {
    ASSERT_TRUE(process.running()) << process.wait().err;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST(Status, OfARunThatHasFinished) {
  const ordered_json status = status_of(world.run());
  const ordered_json last =
      ordered_json::parse(lines_of(read_text(world.run() / "metrics.jsonl")).back());
  EXPECT_EQ(status["state"], "finished");
  EXPECT_EQ(status["step"], 40);
  EXPECT_EQ(status["steps"], 40);
  EXPECT_EQ(status["loss"], last["loss"]);
  EXPECT_EQ(status["validation_loss"], last["validation_loss"]);
  EXPECT_EQ(status["last_checkpoint"]["step"], 40);
  EXPECT_EQ(status["last_checkpoint"]["folder"],
            (world.run() / "checkpoints/step-00000040").string());
  EXPECT_EQ(status["workers"].size(), 1u);
  EXPECT_EQ(status["job"], nullptr);
  const Result text = run({"status", world.run()});
  EXPECT_THAT(text.out, AllOf(HasSubstr("finished"), HasSubstr("40 of 40 (100 %)")));
  EXPECT_EQ(run({"status", world.run(), "--follow"}).code, 0) << "it has ended already";
  EXPECT_FALSE(fs::exists(world.run() / "lease.json"));
}

// From its beginning to its end, also by who may only read; killed, and taken up again at once.
TEST(Status, OfARunThatIsOnItsWay) {
  const fs::path folder = world.path("watched");
  auto process = endless(folder, {"--checkpoint-every", "2"},
                         {.workers = 2, .environment = {"SLURM_JOB_ID=4711"}});
  wait_for(folder / "checkpoints/step-00000002", *process);
  ordered_json status = status_of(folder);
  EXPECT_EQ(status["state"], "running");
  EXPECT_EQ(status["workers"].size(), 2u);
  EXPECT_EQ(status["job"], "4711");
  EXPECT_GE(status["last_checkpoint"]["step"], 2);
  EXPECT_GT(status["step"], 0);
  Process follower({"status", folder, "--follow", "--json"});
  const pid_t pid = status["pid"];
  const fs::path lease = folder / "lease.json";
  if (::geteuid() == 0 && run({"--version"}, {.as_nobody = true}).code == 0) {
    EXPECT_EQ(run({"status", folder}, {.as_nobody = true}).code, 0);
  }
  expect_error(run({"train", "--run", folder}), 2,
               {"another program is training in", "job 4711", "choose another --run"});

  ::kill(pid, SIGKILL);
  process->wait();
  EXPECT_TRUE(fs::exists(lease));
  const Result followed = follower.wait();
  EXPECT_EQ(followed.code, 0);
  EXPECT_EQ(ordered_json::parse(lines_of(followed.out).back())["state"], "lost");
  status = status_of(folder);
  EXPECT_EQ(status["state"], "lost");
  EXPECT_THAT(run({"status", folder}).out, HasSubstr("run it again to go on"));

  const int64_t next = status["last_checkpoint"]["step"].get<int64_t>() + 2;
  process = endless(folder, {"--checkpoint-every", "2"});
  wait_for(folder / fmt::format("checkpoints/step-{:08}", next), *process);
  process->signal(SIGTERM);
  const Result stopped = process->wait();
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_THAT(stopped.err, AllOf(HasSubstr("was held by process"), HasSubstr("taking over")));
  status = status_of(folder);
  EXPECT_EQ(status["state"], "stopped");
  EXPECT_EQ(status["step"], status["last_checkpoint"]["step"]);
  EXPECT_FALSE(fs::exists(lease));
}

TEST(Status, OfARunThatFailed) {
  const fs::path folder = world.path("failed");
  const Result result =
      run({"train", "--config", world.run() / "run.cfg", "--run", folder, "--threads", "1",
           "--steps", "200", "--learning-rate", "1e30", "--warmup-steps", "0"});
  EXPECT_EQ(result.code, 3);
  const ordered_json status = status_of(folder);
  EXPECT_EQ(status["state"], "failed");
  EXPECT_THAT(status["reason"].get<std::string>(), HasSubstr("were not finite"));
}

TEST(Status, WhatIsNoRunFolder) {
  expect_error(run({"status", world.path("nowhere")}), 3, {"nowhere", "no such run folder"});
  expect_error(run({"status", world.data()}), 3, {"no run folder", "status.json"});
  world.write("odd/status.json", "{}");
  expect_error(run({"status", world.path("odd")}), 3, {"status.json is damaged"});
  world.write("cut/status.json", R"({"state": "runn)");
  expect_error(run({"status", world.path("cut")}), 3, {"status.json is damaged: it is no JSON"});
  expect_error(run({"status"}), 2, {"RUN"});
}

// A start that is refused says nothing of the run.
TEST(Status, ARefusedStartLeavesItAlone) {
  const fs::path folder = world.copy(world.run(), "refused_status");
  const std::string before = read_text(folder / "status.json");
  expect_error(run({"train", "--run", folder, "--heads", "4"}), 2, {"contradict the run in"});
  EXPECT_EQ(read_text(folder / "status.json"), before);
  EXPECT_FALSE(fs::exists(folder / "lease.json"));
}

// It ends by itself, with all that it did saved, and goes on with the bits of a run without limit.
TEST(TimeLimit, StopsAndSavesInTime) {
  const fs::path folder = world.path("in_time");
  const auto start = std::chrono::steady_clock::now();
  const Result result = endless(folder, {"--time-limit", "4"}, {.workers = 2})->wait();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(result.code, 75) << result.err;
  EXPECT_THAT(result.err, AllOf(HasSubstr("the time limit ends in"), HasSubstr("saved")));
  EXPECT_GT(took.count(), 1);
  const ordered_json status = status_of(folder);
  EXPECT_EQ(status["state"], "stopped");
  EXPECT_THAT(status["reason"].get<std::string>(), HasSubstr("time limit"));
  EXPECT_EQ(status["step"], status["last_checkpoint"]["step"]);
  EXPECT_EQ(lines_of(read_text(folder / "metrics.jsonl")).size(), status["step"]);
}

TEST(TimeLimit, IsSlurmsWhereNoneIsGiven) {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  const Arguments job{"SLURM_JOB_ID=12", fmt::format("SLURM_JOB_END_TIME={}", now + 5)};
  Result result = endless(world.path("slurm"), {}, {.environment = job})->wait();
  EXPECT_EQ(result.code, 75) << result.err;
  EXPECT_THAT(result.err, HasSubstr("the job ends in 0:0"));
  // What is given comes first.
  result = run(train_arguments(world.data(), world.path("slurm_no_limit"),
                               {"--steps", "2", "--time-limit", "none"}),
               {.environment = {"SLURM_JOB_ID=12", fmt::format("SLURM_JOB_END_TIME={}", now - 9)}});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST(TimeLimit, TooShortToSave) {
  expect_error(run(train_arguments(world.data(), world.path("too_short"), {"--time-limit", "1"})),
               2, {"the time limit ends in", "give the run more time"});
  expect_error(run(train_arguments(world.data(), world.path("wrong"), {"--time-limit", "soon"})), 2,
               {"--time-limit soon", "2h30m"});
}

}  // namespace
}  // namespace lockstep::black_box
