#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <thread>

#include "tests/launch/program/world.h"

// generate --output: many prompts, one worker or several.
namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using testing::HasSubstr;
using testing::Not;

World& world = World::get();

constexpr int kPrompts = 24;

// Prompts of several lengths, some with the same beginning, with options of their own.
fs::path prompts() {
  const fs::path file = world.path("many.jsonl");
  if (fs::exists(file)) return file;
  std::string requests;
  for (int i = 0; i < kPrompts; i++) {
    ordered_json request = {{"prompt", std::string("The quick brown fox").substr(0, 2 + i % 12)},
                            {"max_tokens", 3 + 5 * i % 13}};
    if (i == 5) request["num_beams"] = 3;
    if (i != 5) request["temperature"] = 1.5;
    if (i == 7) request["logprobs"] = 2;
    if (i == 9) request["seed"] = 3;
    requests += request.dump() + "\n";
  }
  return world.write("many.jsonl", requests);
}

Arguments arguments(const fs::path& output, const Arguments& more = {}) {
  Arguments all{"generate", "--checkpoint", world.run(), "--precision", "fp32", "--prompt-file",
                prompts(),  "--threads",    "1",         "--output",    output};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

fs::path journal(const fs::path& output) { return output.string() + ".partial"; }

// What one worker writes undisturbed.
std::string whole() {
  const fs::path output = world.path("whole.jsonl");
  if (!fs::exists(output)) {
    const Result result = run(arguments(output));
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("\n24/24 prompts"));
    EXPECT_THAT(result.err, HasSubstr("[24 prompts, "));
    EXPECT_EQ(result.out, "");
  }
  return read_text(output);
}

// A shell's words after which a file of the program cannot grow beyond 2 KiB: the write fails where
// `fails`, else the system ends the program in the middle of a line.
std::string small_files(bool fails) {
  return std::string(fails ? "trap '' XFSZ; " : "") + "ulimit -f 4";
}

// Four prompts, of which one takes long.
Arguments slow_arguments(const fs::path& output) {
  const fs::path model = world.path("slow_many");
  if (!fs::exists(model)) {
    const Result made =
        run({"train", "--data",       world.data(), "--run",         model, "--layers",
             "2",     "--heads",      "2",          "--hidden-size", "64",  "--context-length",
             "4000",  "--batch-size", "1",          "--steps",       "1",   "--virtual-workers",
             "1",     "--precision",  "fp32"});
    EXPECT_EQ(made.code, 0) << made.err;
  }
  const fs::path file = world.write(
      "slow_many.jsonl",
      "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n{\"prompt\": \"The\", \"max_tokens\": 3000}\n"
      "{\"prompt\": \"c\"}\n");
  return {"generate",
          "--checkpoint",
          model,
          "--precision",
          "fp32",
          "--prompt-file",
          file,
          "--threads",
          "1",
          "--max-tokens",
          "4",
          "--forbid",
          "<|endoftext|>",
          "--output",
          output};
}

// What one worker writes undisturbed.
std::string slow_whole() {
  const fs::path output = world.path("slow_whole.jsonl");
  if (!fs::exists(output)) {
    const Result result = run(slow_arguments(output));
    EXPECT_EQ(result.code, 0) << result.err;
  }
  return read_text(output);
}

// Until the short ones are done.
void wait_for_three(Process& process, const fs::path& output) {
  while (process.running() && lines_of(read_text(journal(output))).size() < 4) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

struct ManyPrompts : testing::Test {
  // A journal with a part of the completions, the last of them torn.
  static fs::path begun(const std::string& name) {
    const fs::path output = world.path(name);
    const Result result = run(arguments(output), {.prelude = small_files(false)});
    EXPECT_EQ(result.code, 128 + SIGXFSZ) << result.err;
    EXPECT_FALSE(fs::exists(output));
    const std::string content = read_text(journal(output));
    EXPECT_FALSE(content.ends_with('\n'));
    EXPECT_GT(lines_of(content).size(), 4u);
    return output;
  }
};

// The lines are those of --json, but for the rate, and the key of the work.
TEST_F(ManyPrompts, TheFileHoldsWhatJsonShows) {
  const Result result = run({"generate", "--checkpoint", world.run(), "--precision", "fp32",
                             "--prompt-file", prompts(), "--json"});
  const std::vector<std::string> shown = lines_of(result.out), written = lines_of(whole());
  ASSERT_EQ(shown.size(), static_cast<size_t>(kPrompts));
  ASSERT_EQ(written.size(), shown.size());
  for (size_t i = 0; i < shown.size(); i++) {
    ordered_json want = ordered_json::parse(shown[i]), got = ordered_json::parse(written[i]);
    EXPECT_EQ(got.at("work").get<std::string>().size(), 16u);
    want.erase("tokens_per_second");
    got.erase("work");
    EXPECT_EQ(got.dump(), want.dump());
  }
}

TEST_F(ManyPrompts, AnyNumberOfWorkersWritesTheSameBytes) {
  for (const int workers : {1, 2, 3, 4}) {
    const fs::path output = world.path(fmt::format("by_{}.jsonl", workers));
    const Result result =
        run(arguments(output, {"--batch-size", std::to_string(5 - workers)}), {.workers = workers});
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(read_text(output), whole());
    EXPECT_FALSE(fs::exists(journal(output)));
  }
}

TEST_F(ManyPrompts, GoesOnAfterTheProgramDied) {
  for (const int workers : {0, 3}) {
    const fs::path output = begun(fmt::format("died_{}.jsonl", workers));
    const size_t done = lines_of(read_text(journal(output))).size() - 2;  // header, torn line
    const Result result = run(arguments(output), {.workers = workers});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr(fmt::format("resuming: {} of 24 prompts are done", done)));
    EXPECT_EQ(read_text(output), whole());
    EXPECT_FALSE(fs::exists(journal(output)));
  }
}

TEST_F(ManyPrompts, AFullDiskLeavesTheJournalWhole) {
  const fs::path output = world.path("full.jsonl");
  const Options small{.prelude = small_files(true)};
  expect_error(run(arguments(output), small), 3,
               {"cannot write", "full.jsonl.partial", "start the same command again"});
  const std::string content = read_text(journal(output));
  EXPECT_TRUE(content.ends_with("}\n"));
  EXPECT_FALSE(fs::exists(output));
  // Still no room.
  expect_error(run(arguments(output), small), 3, {"cannot write"});
  EXPECT_EQ(run(arguments(output), {.workers = 2}).code, 0);
  EXPECT_EQ(read_text(output), whole());
}

// A job that the batch system starts once more has nothing to do, and does not fail.
TEST_F(ManyPrompts, AWholeFileStays) {
  const std::string content = whole();
  const fs::path output = world.path("whole.jsonl");
  const auto written = fs::last_write_time(output);
  for (const int workers : {0, 2}) {
    const Result result = run(arguments(output), {.workers = workers});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("is there already, with all of its 24 completions"));
    EXPECT_EQ(fs::last_write_time(output), written);
    EXPECT_FALSE(fs::exists(journal(output)));
  }
  for (const Arguments& other :
       {Arguments{"--seed", "1"}, {"--precision", "bf16"}, {"--prompt", "one more"}}) {
    Arguments all = arguments(output, other);
    if (other[0] == "--precision") all.erase(all.begin() + 3, all.begin() + 5);
    expect_error(run(all), 2, {"is there already, and holds something else", "another --output"});
  }
  EXPECT_EQ(read_text(output), content);
  EXPECT_FALSE(fs::exists(journal(output)));
}

TEST_F(ManyPrompts, AJournalOfOtherWorkIsRefused) {
  const fs::path output = begun("other_work.jsonl");
  const std::string content = read_text(journal(output));
  expect_error(run(arguments(output, {"--seed", "5", "--stop", "x"})), 2,
               {"other_work.jsonl.partial was begun with other options", "seed was 0 and is 5 now",
                "stop was not given and is [\"x\"] now", "or remove it"});
  expect_error(run(arguments(output, {"--prompt", "one more"}), {.workers = 2}), 2,
               {"prompts was 24 with XXH3 ", " and is 25 with XXH3 "});
  Arguments older = arguments(output);
  older[2] = world.run() / "checkpoints" / "step-00000020";
  expect_error(run(older), 2, {"checkpoint was ", "step-00000040 and is ", "step-00000020 now"});
  EXPECT_EQ(read_text(journal(output)), content);
  world.write("other_work.jsonl.partial", "something else\n");
  expect_error(run(arguments(output)), 2, {"is not a journal of generate"});
  EXPECT_EQ(read_text(journal(output)), "something else\n");
}

TEST_F(ManyPrompts, TwoProgramsCannotWriteOneFile) {
  const fs::path output = world.path("shared.jsonl"), lease = journal(output).string() + ".lease";
  Process process(slow_arguments(output));
  wait_for_three(process, output);
  process.signal(SIGSTOP);  // it shall not end before the other is refused
  EXPECT_TRUE(fs::exists(lease));
  expect_error(run(slow_arguments(output), {.workers = 2}), 2,
               {"another program is writing", "shared.jsonl right now", "process ",
                "choose another --output"});
  process.signal(SIGKILL);
  process.wait();
  EXPECT_TRUE(fs::exists(lease));
  const Result result = run(slow_arguments(output));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("shared.jsonl was held by process "));
  EXPECT_EQ(read_text(output), slow_whole());
  EXPECT_FALSE(fs::exists(lease));
}

TEST_F(ManyPrompts, WhatDoesNotDoIsRefusedBeforeAnythingIsWritten) {
  Arguments to_the_screen = arguments("x");
  to_the_screen.resize(to_the_screen.size() - 2);
  expect_error(run(to_the_screen, {.workers = 2}), 2,
               {"2 workers need a file to write to", "--output FILE"});
  const fs::path output = world.path("none.jsonl");
  for (const char* other : {"--json", "--verbose"}) {
    expect_error(run(arguments(output, {other})), 2, {"--output contradicts ", other});
  }
  expect_error(run({"generate", "--checkpoint", world.run(), "--output", output}), 2,
               {"--output needs prompts", "--prompt-file"});
  expect_error(run(arguments(world.path("nowhere") / "a.jsonl"), {.workers = 2}), 2,
               {"there is no folder", "nowhere", "--output"});
  expect_error(run(arguments(world.run())), 2, {"is a folder: name a file"});
  for (const int workers : {0, 2}) {
    expect_error(run(arguments(output, {"--prompt", std::string(43, 'x')}), {.workers = workers}),
                 2, {"prompt 1: the prompt has 43 tokens"});
    EXPECT_FALSE(fs::exists(journal(output))) << "a journal of nothing";
  }
  EXPECT_FALSE(fs::exists(output));
}

struct Way {
  int workers, signal;
  const char* name;
};

struct ManyPromptsStopped : testing::TestWithParam<Way> {};

// One prompt takes long; what is done besides it at the signal is not done again.
TEST_P(ManyPromptsStopped, GoOn) {
  const Way way = GetParam();
  const fs::path output = world.path(fmt::format("stopped_{}.jsonl", way.name));
  const Arguments all = slow_arguments(output);
  Process process(all, {.workers = way.workers});
  wait_for_three(process, output);
  process.signal(way.signal);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 75) << result.err;
  EXPECT_THAT(result.err, HasSubstr("stopped on request: 3 of 4 prompts are done; run it again"));
  EXPECT_FALSE(fs::exists(output));
  const Result resumed = run(all);
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("resuming: 3 of 4 prompts are done"));
  EXPECT_EQ(read_text(output), slow_whole());
  EXPECT_EQ(lines_of(read_text(output)).size(), 4u);
}

INSTANTIATE_TEST_SUITE_P(Signals, ManyPromptsStopped,
                         testing::Values(Way{0, SIGTERM, "TERM"}, Way{2, SIGUSR1, "USR1_2"}),
                         [](const auto& way) { return std::string(way.param.name); });

}  // namespace
}  // namespace lockstep::black_box
