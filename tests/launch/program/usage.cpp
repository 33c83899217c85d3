#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

using testing::HasSubstr;

World& world = World::get();

struct Usage : testing::Test {
  // train on the data of the world, into a run that must not come to be.
  static Result train(const Arguments& more, const Options& options = {}) {
    Arguments arguments{"train", "--data", world.data(), "--run", world.path("unwanted")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, options);
  }
  void TearDown() override { EXPECT_FALSE(std::filesystem::exists(world.path("unwanted"))); }
};

TEST_F(Usage, NoCommandShowsTheOverviewOnStderr) {
  const Result result = run({});
  EXPECT_EQ(result.code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("Usage: lockstep COMMAND"));
}

TEST_F(Usage, UnknownCommandNamesTheNearest) {
  expect_error(run({"trian"}), 2, {"unknown command 'trian'", "did you mean train?"});
  expect_error(run({"sing"}), 2, {"unknown command 'sing'", "prepare, train, generate"});
  expect_error(run({"help", "evalute"}), 2, {"did you mean evaluate?"});
  expect_error(run({"checkpoint", "lst"}), 2, {"unknown action 'lst'", "did you mean list?"});
}

TEST_F(Usage, UnknownOptionNamesTheNearest) {
  expect_error(train({"--step", "3"}), 2, {"unknown option --step", "did you mean --steps?"});
  expect_error(train({"--hiden-size=3"}), 2, {"--hiden-size=3", "did you mean --hidden-size?"});
  expect_error(train({"--zzzzzz", "3"}), 2, {"--zzzzzz", "'lockstep train --help' lists"});
  expect_error(train({"-s", "3"}), 2, {"unknown option -s"});
  expect_error(run({"prepare", "--inputs", "x", "--output", "y"}), 2, {"did you mean --input?"});
  expect_error(run({"generate", "--promt", "x"}), 2, {"did you mean --prompt?"});
  expect_error(run({"evaluate", "--jason"}), 2, {"did you mean --json?"});
  expect_error(run({"checkpoint", "export", "x", "--outptu", "y"}), 2, {"did you mean --output?"});
  expect_error(run({"doctor", "--jsn"}), 2, {"did you mean --json?"});
}

TEST_F(Usage, WhatIsMissingIsNamed) {
  expect_error(run({"train", "--run", world.path("unwanted")}), 2, {"--data DATASET is missing"});
  expect_error(run({"train", "--data", world.data()}), 2, {"--run DIR is missing"});
  expect_error(train({"--steps"}), 2, {"--steps needs a value: N"});
  expect_error(train({"--steps", "--seed", "1"}), 2, {"--steps needs a value: N"});
  expect_error(run({"generate", "--prompt", "x"}), 2, {"--checkpoint PATH is missing"});
  expect_error(run({"prepare", "--output", "x"}), 2, {"--input PATH... is missing"});
  expect_error(run({"checkpoint", "diff", "a"}), 2, {"B is missing", "diff A B"});
  expect_error(run({"checkpoint", "export", "a", "--output", "x"}), 2,
               {"--format h5|hf is missing"});
}

TEST_F(Usage, WhatIsTooMuchIsNamed) {
  expect_error(train({"extra"}), 2, {"'extra' is not expected here"});
  expect_error(train({"--steps", "5", "--steps", "6"}), 2, {"--steps is given twice"});
  expect_error(train({"--recompute=3"}), 2, {"--recompute takes no value"});
  expect_error(run({"checkpoint", "diff", "a", "b", "c"}), 2, {"'c' is not expected here"});
}

TEST_F(Usage, ValuesOutOfRangeNameTheRange) {
  expect_error(train({"--steps", "0"}), 2, {"--steps 0: a whole number of at least 1"});
  expect_error(train({"--steps", "1e3"}), 2, {"--steps 1e3: a whole number"});
  expect_error(train({"--dropout", "1"}), 2, {"--dropout 1:", "below 1"});
  expect_error(train({"--learning-rate", "nan"}), 2, {"--learning-rate nan: a number above 0"});
  expect_error(train({"--learning-rate", "1e-3x"}), 2, {"--learning-rate 1e-3x: a number above 0"});
  expect_error(train({"--seed", "-1"}), 2, {"--seed -1: a whole number from 0"});
  expect_error(train({"--schedule", "cosin"}), 2, {"cosine, linear", "did you mean cosine?"});
  expect_error(train({"--model", "gpt2-125m"}), 2, {"gpt2-125m", "did you mean gpt2-124m?"});
  expect_error(train({"--precision", "fp8"}), 2, {"auto, fp32, bf16, fp16"});
  expect_error(train({"--loss-scale", "0"}), 2, {"dynamic or a number above 0"});
  expect_error(run({"prepare", "--input", "x", "--output", "y", "--vocab-size", "10"}), 2,
               {"--vocab-size 10: a whole number from 257"});
  expect_error(run({"generate", "--checkpoint", "x", "--top-p", "1.1"}), 2,
               {"--top-p is 1.1; it must be from 0"});
}

TEST_F(Usage, ContradictorySizes) {
  expect_error(train({"--heads", "3", "--hidden-size", "16"}), 2,
               {"3 heads do not divide a hidden-size of 16"});
  expect_error(train({"--family", "llama", "--heads", "4", "--kv-heads", "3"}), 2,
               {"3 kv-heads do not divide 4 heads"});
  expect_error(train({"--heads", "4", "--kv-heads", "2"}), 2,
               {"2 kv-heads with 4 heads", "family llama"});
  expect_error(train({"--batch-size", "6", "--micro-batch-size", "4"}), 2,
               {"--micro-batch-size 4 does not divide the 6 sequences", "1, 2, 3, 6"});
  expect_error(train({"--batch-size", "7"}, {.workers = 2}), 2,
               {"--batch-size 7 is not divisible by 2 workers", "6 and 8", "out of 1, 7"});
  expect_error(train({"--model", "gpt2-124m", "--layers", "3"}), 2,
               {"--layers contradicts --model gpt2-124m"});
  expect_error(train({"--steps", "5", "--warmup-steps", "6"}), 2,
               {"--warmup-steps 6 is more than the 5 steps"});
  expect_error(train({"--precision", "fp32", "--loss-scale", "4"}), 2,
               {"--loss-scale 4", "--precision fp16 only"});
  expect_error(train({"--hidden-size", "65536", "--layers", "4096"}), 2,
               {"parameters needs", "choose a smaller model"});
}

TEST_F(Usage, ConfigurationFile) {
  const auto with = [](const std::string& content, const Options& options = {}) {
    return train({"--config", world.write("run.cfg", content)}, options);
  };
  expect_error(train({"--config", "nowhere.cfg"}), 2, {"nowhere.cfg: cannot be read"});
  expect_error(train({"--config", world.data()}), 2, {"cannot be read as a configuration file"});
  expect_error(with("steps = 4\nlayrs = 2\n"), 2,
               {"run.cfg:2: unknown option 'layrs'", "did you mean layers?"});
  expect_error(with("# steps\nsteps 4\n"), 2, {"run.cfg:2: expected 'name = value'"});
  expect_error(with("steps = many\n", {.workers = 2}), 2,
               {"run.cfg:1: steps many: a whole number"});
  expect_error(with("\xef\xbb\xbfsteps = 4\r\nseed = x\r\n"), 2, {"run.cfg:2: seed x:"});
  expect_error(with("steps = 4\nsteps = 5\n"), 2, {"run.cfg:2: steps is given twice"});
  expect_error(with("fresh = true\n"), 2, {"'fresh' works on the command line only"});
  expect_error(with("heads = 3\nhidden-size = 16\n"), 2, {"3 heads do not divide"});
}

TEST_F(Usage, OneWorkerSpeaksForAll) {
  expect_error(run({"trian"}, {.workers = 2}), 2, {"did you mean train?"});
  expect_error(train({"--step", "3"}, {.workers = 3}), 2, {"did you mean --steps?"});
  expect_error(run({"train", "--data", world.path("nowhere"), "--run", world.path("unwanted")},
                   {.workers = 2}),
               3, {"there is no dataset folder", "lockstep prepare"});
  expect_error(run({"generate", "--checkpoint", "x", "--prompt", "y"}, {.workers = 2}), 2,
               {"lockstep generate: 2 workers need a file to write to: add --output FILE"});
  const Result version = run({"--version"}, {.workers = 2});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(lines_of(version.out).size(), 1u) << version.out;
}

TEST_F(Usage, ResultsThatCannotBeWrittenAreAnError) {
  Options full;
  full.output_file = "/dev/full";
  if (!std::filesystem::exists(full.output_file)) GTEST_SKIP() << "no /dev/full";
  for (const Arguments& arguments :
       {Arguments{"--help"},
        {"train", "--help"},
        {"checkpoint", "inspect", world.run()},
        {"evaluate", "--checkpoint", world.run(), "--data", world.data(), "--json"},
        {"generate", "--checkpoint", world.run(), "--prompt", "The", "--max-tokens", "4"}}) {
    SCOPED_TRACE(arguments.front());
    const Result result = run(arguments, full);
    EXPECT_EQ(result.code, 3);
    EXPECT_THAT(result.err, HasSubstr("standard output cannot be written"));
  }
}

// Every option of a command's help stands under a caption, and every line fits.
TEST_F(Usage, HelpOfEveryCommand) {
  const std::vector<std::pair<Arguments, std::vector<std::string>>> commands = {
      {{"prepare"}, {"Input and output:", "Tokenizer:", "Machine:"}},
      {{"train"},
       {"Run:", "Model:", "Batch:", "Optimizer:", "Schedule:", "Numerics:", "Machine:", "Output:"}},
      {{"generate"},
       {"Model:", "Prompts:", "Sampling:", "Penalties and bans",
        "Output:", "Numerics:", "Machine:"}},
      {{"evaluate"}, {"Model and data:", "Output:", "Numerics:", "Machine:"}},
      {{"checkpoint"}, {"list", "inspect", "verify", "diff", "export", "import"}},
      {{"doctor"}, {"Output:"}},
  };
  for (const auto& [command, captions] : commands) {
    SCOPED_TRACE(command.front());
    const Result result = run({command.front(), "--help"});
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_TRUE(result.out.starts_with("Usage: lockstep " + command.front())) << result.out;
    size_t place = 0;
    for (const std::string& caption : captions) {
      place = result.out.find(caption, place);
      ASSERT_NE(place, std::string::npos) << caption;
    }
    for (const std::string& line : lines_of(result.out)) EXPECT_LE(line.size(), 100u) << line;
    EXPECT_EQ(run({"help", command.front()}).out, result.out);
  }
  for (const std::string& line : lines_of(run({"--help"}).out)) EXPECT_LE(line.size(), 100u);
}

}  // namespace
}  // namespace lockstep::black_box
