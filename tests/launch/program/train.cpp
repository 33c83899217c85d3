#include <fmt/format.h>
#include <unistd.h>

#include <cmath>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using testing::HasSubstr;

World& world = World::get();

void expect_same(const fs::path& a, const fs::path& b) {
  const Result diff = run({"checkpoint", "diff", a, b});
  EXPECT_EQ(diff.code, 0) << diff.out << diff.err;
}

struct Train : testing::Test {
  // A copy of the run of the world.
  static fs::path copy() {
    fs::remove_all(world.path("copy"));
    return world.copy(world.run(), "copy");
  }
  static Result resume(const fs::path& folder, const Arguments& more = {},
                       const Options& options = {}) {
    Arguments arguments{"train", "--run", folder};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, options);
  }
};

TEST_F(Train, WritesAMetricsLineAStep) {
  const std::vector<std::string> lines = lines_of(read_text(world.run() / "metrics.jsonl"));
  ASSERT_EQ(lines.size(), 40u);
  const std::vector<std::string> each{
      "step",    "loss",   "learning_rate",     "grad_norm",   "loss_scale",
      "skipped", "tokens", "tokens_per_second", "step_seconds"};
  for (size_t i = 0; i < lines.size(); i++) {
    const ordered_json line = ordered_json::parse(lines[i]);
    std::vector<std::string> expected = each;
    if (i + 1 == lines.size()) {  // evaluated at the end
      expected.insert(expected.end(), {"validation_loss", "validation_bits_per_byte"});
    }
    std::vector<std::string> keys;
    for (const auto& [key, value] : line.items()) keys.push_back(key);
    EXPECT_EQ(keys, expected);
    EXPECT_EQ(line["step"], i + 1);
    EXPECT_EQ(line["tokens"], (i + 1) * 6 * 32);
    EXPECT_EQ(line["skipped"], false);
  }
  const ordered_json last = ordered_json::parse(lines.back());
  // The bytes tokenizer has a token a byte, and one more a document, of which there is one.
  EXPECT_NEAR(last["validation_bits_per_byte"].get<double>(),
              last["validation_loss"].get<double>() / std::log(2.0), 0.01);
  EXPECT_LT(last["loss"].get<double>(), ordered_json::parse(lines.front())["loss"].get<double>());
}

TEST_F(Train, ProgressGoesToStderr) {
  const Result result = run(
      train_arguments(world.data(), world.path("progress"), {"--steps", "4", "--log-every", "2"}));
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out, "");
  for (const char* part :
       {"step 2/4", "step 4/4", "loss", "tokens/s", "validation loss", "saved"}) {
    EXPECT_THAT(result.err, HasSubstr(part));
  }
  EXPECT_EQ(result.err.find('\r'), std::string::npos) << "plain lines into a file";
}

// run.cfg says all that the run depends on.
TEST_F(Train, RunConfigurationRepeatsTheRun) {
  const fs::path again = world.path("repeated");
  const Result result =
      run({"train", "--config", world.run() / "run.cfg", "--run", again, "--threads", "2"});
  EXPECT_EQ(result.code, 0) << result.err;
  expect_same(world.run(), again);
  EXPECT_EQ(read_text(again / "run.cfg"), read_text(world.run() / "run.cfg"));
}

TEST_F(Train, TheCommandLineComesBeforeTheConfiguration) {
  const fs::path short_run = world.path("short");
  const Result result =
      run({"train", "--config", world.run() / "run.cfg", "--run", short_run, "--steps", "3"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(step_folders(short_run), std::vector<std::string>{"step-00000003"});
}

TEST_F(Train, GoesOnByItself) {
  const fs::path folder = copy();
  fs::remove_all(folder / "checkpoints/step-00000040");
  const Result result = resume(folder);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("going on from"));
  EXPECT_THAT(result.err, HasSubstr("step-00000020"));
  expect_same(world.run(), folder);
  const Result finished = resume(folder);
  EXPECT_EQ(finished.code, 0);
  EXPECT_THAT(finished.err, HasSubstr("has its 40 steps already"));
  EXPECT_EQ(lines_of(read_text(folder / "metrics.jsonl")).size(), 40u);
}

TEST_F(Train, RefusesOptionsThatContradictTheRun) {
  const fs::path folder = copy();
  const std::string what = "contradict the run in";
  expect_error(resume(folder, {"--layers", "3"}), 2, {what, "--layers 3 against 2"});
  expect_error(resume(folder, {"--heads", "4"}), 2, {what, "--heads 4 against 2"});
  expect_error(resume(folder, {"--family", "llama"}), 2, {what, "--family llama against gpt2"});
  expect_error(resume(folder, {"--seed", "5", "--learning-rate", "0.5"}), 2,
               {what, "--seed 5 against 0", "--learning-rate 0.5 against 0.01"});
  expect_error(resume(folder, {"--precision", "bf16"}), 2, {"--precision bf16 against fp32"});
  expect_error(resume(folder, {"--batch-size", "12"}, {.workers = 2}), 2,
               {what, "--batch-size 12 against 6"});
  expect_error(resume(folder, {}, {.workers = 4}), 2,
               {"6 virtual workers of the run cannot be dealt to 4 workers", "with 1, 2, 3, 6"});
  expect_error(resume(folder, {"--fresh"}), 2, {"--fresh", "holds checkpoints already"});
  EXPECT_EQ(step_folders(folder), step_folders(world.run()));
  EXPECT_EQ(read_text(folder / "run.cfg"), read_text(world.run() / "run.cfg"));
}

// What is refused leaves run.cfg as it was.
TEST_F(Train, RefusesFewerStepsThanItHas) {
  const fs::path folder = copy();
  expect_error(resume(folder, {"--steps", "30"}), 2,
               {"--steps 30 is less than the 40 steps", "has already"});
  EXPECT_EQ(read_text(folder / "run.cfg"), read_text(world.run() / "run.cfg"));
}

TEST_F(Train, ARunThatIsNotThere) {
  expect_error(run({"train", "--run", world.path("nope")}), 2,
               {"--data DATASET is missing", "there is no run", "nope"});
}

TEST_F(Train, OptionsOfGpusOnACpu) {
  for (const char* option : {"--share-gpu", "--no-cuda-graph"}) {
    expect_error(run(train_arguments(world.data(), world.path("cpu"), {"--device", "cpu", option})),
                 2, {option, "contradicts --device cpu"});
  }
  expect_error(run({"generate", "--checkpoint", world.run(), "--prompt", "a", "--share-gpu",
                    "--device", "cpu"}),
               2, {"--share-gpu contradicts --device cpu"});
}

TEST_F(Train, OtherDataThanTheRunHad) {
  std::string text = read_text(world.text());
  text[0] = 'X';
  const fs::path other = world.path("other_data");
  EXPECT_EQ(run({"prepare", "--input", world.write("other.txt", text), "--output", other,
                 "--tokenizer", "bytes"})
                .code,
            0);
  expect_error(resume(copy(), {"--data", other}), 3, {"other_data", "is not what the checkpoint"});
}

TEST_F(Train, StartsWithGivenWeights) {
  const fs::path tuned = world.path("tuned");
  const Arguments start{"train",   "--data", world.data(),        "--run",    tuned,
                        "--steps", "2",      "--initialize-from", world.run()};
  const auto with = [&](Arguments more) {
    more.insert(more.begin(), start.begin(), start.end());
    return run(more);
  };
  expect_error(with({"--layers", "3"}), 2, {"--layers 3 contradicts the weights", "it is 2"});
  expect_error(with({"--family", "llama"}), 2, {"--family llama contradicts", "gpt2"});
  expect_error(with({"--context-length", "64"}), 2, {"--context-length 64 against 32"});
  expect_error(with({"--heads", "4"}), 2, {"--heads 4 contradicts the weights", "it is 2"});
  EXPECT_FALSE(fs::exists(tuned));
  expect_error(run({"train", "--data", world.data(), "--run", tuned, "--initialize-from",
                    world.path("nowhere")}),
               3, {"there is no", "nowhere", "model.h5"});
  const Result result = with({});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("starting with weights of"));
}

TEST_F(Train, RunFolderThatCannotBeWritten) {
  for (const int workers : {0, 2}) {
    expect_error(run(train_arguments(world.data(), world.text()), {.workers = workers}), 3,
                 {"the run folder", "text.txt cannot be made", "Not a directory"});
  }
  if (::geteuid() != 0) return;
  const Options nobody{.as_nobody = true};
  if (run({"--version"}, nobody).code != 0) GTEST_SKIP() << "another user cannot run the program";
  expect_error(run(train_arguments(world.data(), world.path("forbidden")), nobody), 3,
               {"forbidden", "Permission denied"});
}

// Weights that have diverged end the run, in every precision.
TEST_F(Train, Divergence) {
  for (const char* precision : {"fp32", "fp16", "bf16"}) {
    SCOPED_TRACE(precision);
    const fs::path folder = world.path(fmt::format("diverged_{}", precision));
    const Arguments arguments{"train",
                              "--config",
                              world.run() / "run.cfg",
                              "--run",
                              folder,
                              "--threads",
                              "1",
                              "--steps",
                              "200",
                              "--learning-rate",
                              "1e30",
                              "--warmup-steps",
                              "0",
                              "--checkpoint-every",
                              "1",
                              "--precision",
                              precision};
    expect_error(run(arguments), 3,
                 {"the gradients of 10 steps in a row were not finite", "the checkpoint of step",
                  "lower --learning-rate"});
    EXPECT_EQ(run({"checkpoint", "verify", folder}).code, 0);
    const ordered_json last =
        ordered_json::parse(lines_of(read_text(folder / "metrics.jsonl")).back());
    EXPECT_EQ(last["skipped"], true);
    EXPECT_EQ(last["grad_norm"], nullptr);
    EXPECT_EQ(last["loss_scale"], 1.0);  // of fp16: halved down to its floor
  }
}

}  // namespace
}  // namespace lockstep::black_box
