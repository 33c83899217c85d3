#include "trainer/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "comm/agreement.h"
#include "core/file.h"
#include "data/prepare.h"
#include "tests/trainer/alone.h"
#include "tests/trainer/temporary_folder.h"
#include "trainer/trainer.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A text with something to learn.
void write_text(const fs::path& path, const std::string& sentence) {
  std::ofstream file(path);
  for (int i = 0; i < 400; i++) file << sentence << " number " << i * 7919 % 1000 << ".\n";
}

struct RunTest : testing::Test {
  static void SetUpTestSuite() {
    folder = new TemporaryFolder();
    write_text(folder->path() / "text.txt", "The quick brown fox jumps over the lazy dog");
    write_text(folder->path() / "other.txt", "Pack my box with five dozen liquor jugs");
    prepare({.inputs = {folder->path() / "text.txt"},
             .output = folder->path() / "data",
             .tokenizer = "bytes"});
    prepare({.inputs = {folder->path() / "other.txt"},
             .output = folder->path() / "other",
             .tokenizer = "bytes"});
    prepare({.inputs = {folder->path() / "text.txt"},
             .output = folder->path() / "trained",
             .tokenizer = "train",
             .vocab_size = 270});
  }
  static void TearDownTestSuite() { delete folder; }

  TrainConfig config(const std::string& run, int64_t steps = 12) const {
    TrainConfig c;
    c.data = folder->path() / "data";
    c.run = runs.path() / run;
    c.steps = steps;
    c.seed = 3;
    c.model.vocab_size = 257;
    c.model.context_length = 32;
    c.model.num_layers = 2;
    c.model.hidden_size = 16;
    c.model.num_heads = c.model.num_kv_heads = 2;
    c.model.head_dim = 8;
    c.model.ffn_size = 64;
    c.model.dropout = 0.1f;
    c.batch_size = 4;
    c.micro_batch_size = 2;
    c.schedule.learning_rate = 1e-2;
    c.checkpoint_every = 5;
    c.evaluate_every = 6;
    return c;
  }

  ExitCode run(const TrainConfig& c) { return train(c, alone); }

  template <class Failure>
  std::string error_of(const TrainConfig& c) {
    try {
      run(c);
    } catch (const Failure& error) {
      return error.what();
    }
    ADD_FAILURE() << "nothing was thrown";
    return "";
  }

  std::vector<nlohmann::json> metrics(const TrainConfig& c) const {
    std::istringstream file(read_file(c.run / "metrics.jsonl"));
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  // The same bits in every tensor and the same state.
  void expect_same(const TrainConfig& a, const TrainConfig& b) {
    const Checkpoint one = Checkpoint::open(a.run), other = Checkpoint::open(b.run);
    EXPECT_EQ(one.info().step, other.info().step);
    EXPECT_EQ(one.info().trainer_state, other.info().trainer_state);
    const int64_t size = one.table().size();
    for (FlatKind kind : {FlatKind::weights, FlatKind::exp_avg, FlatKind::exp_avg_sq}) {
      Buffer x(DType::fp32, {size}), y(DType::fp32, {size});
      one.read(kind, 0, x.tensor());
      other.read(kind, 0, y.tensor());
      EXPECT_EQ(0, std::memcmp(x.tensor().data(), y.tensor().data(), x.size_bytes()));
    }
  }

  static TemporaryFolder* folder;
  TemporaryFolder runs;
  Alone alone;
};
TemporaryFolder* RunTest::folder = nullptr;

TEST_F(RunTest, LearnsSavesAndReports) {
  TrainConfig c = config("run", 60);
  c.evaluate_every = 20;
  c.checkpoint_every = 25;
  EXPECT_EQ(run(c), ExitCode::done);
  EXPECT_THAT(list_checkpoints(c.run), testing::ElementsAre(25, 50, 60));
  const auto lines = metrics(c);
  ASSERT_EQ(lines.size(), 60u);
  for (size_t i = 0; i < 60; i++) {
    EXPECT_EQ(lines[i]["step"], i + 1);
    EXPECT_EQ(lines[i]["tokens"], (i + 1) * 128);
    EXPECT_EQ(lines[i].contains("validation_loss"), (i + 1) % 20 == 0) << i + 1;
  }
  // Random weights know nothing of 257 bytes; a minute's worth of repetition is soon learned.
  EXPECT_NEAR(lines[0]["loss"].get<double>(), std::log(257), 0.2);
  EXPECT_LT(lines[59]["loss"].get<double>(), 3.2);
  EXPECT_LT(lines[59]["validation_loss"].get<double>(), 3.2);
  const Checkpoint last = Checkpoint::open(c.run);
  EXPECT_EQ(last.info().step, 60);
  EXPECT_EQ(last.info().trainer_state["tokens"], 60 * 128);
  EXPECT_EQ(last.info().run_config["learning_rate"], 1e-2);
}

TEST_F(RunTest, InterruptedAndResumedHasTheSameBits) {
  for (DType precision : {DType::fp32, DType::bf16, DType::fp16}) {
    const std::string suffix(name(precision));
    TrainConfig whole = config("whole-" + suffix);
    TrainConfig parts = config("parts-" + suffix);
    whole.precision = parts.precision = precision;
    EXPECT_EQ(run(whole), ExitCode::done);

    request_stop();  // seen in the first step
    EXPECT_EQ(run(parts), ExitCode::stopped);
    EXPECT_THAT(list_checkpoints(parts.run), testing::ElementsAre(1));
    EXPECT_EQ(run(parts), ExitCode::done);
    expect_same(whole, parts);

    const auto a = metrics(whole), b = metrics(parts);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); i++) {
      for (const char* field : {"step", "loss", "grad_norm", "learning_rate", "tokens"}) {
        EXPECT_EQ(a[i][field], b[i][field]) << field << " of line " << i;
      }
    }
  }
}

TEST_F(RunTest, GoesOnFromAnEarlierCheckpointWithEachStepOnceInTheMetrics) {
  const TrainConfig whole = config("whole"), killed = config("killed");
  run(whole);
  run(killed);
  fs::remove_all(checkpoint_folder(killed.run, 12));  // as if killed before the last one was there
  EXPECT_EQ(run(killed), ExitCode::done);
  expect_same(whole, killed);
  const auto lines = metrics(killed);
  ASSERT_EQ(lines.size(), 12u);
  for (size_t i = 0; i < 12; i++) EXPECT_EQ(lines[i]["step"], i + 1);
}

TEST_F(RunTest, FreshRefusesToOverwriteARun) {
  TrainConfig c = config("run", 2);
  c.fresh = true;
  EXPECT_EQ(run(c), ExitCode::done);
  EXPECT_THAT(error_of<SharedError>(c), HasSubstr("--fresh"));
}

TEST_F(RunTest, OptionsThatContradictTheRunAreNamedWithBothValues) {
  const TrainConfig c = config("run", 2);
  run(c);
  TrainConfig other = c;
  other.schedule.learning_rate = 0.5;
  other.model.num_layers = 3;
  other.precision = DType::bf16;
  const std::string message = error_of<SharedError>(other);
  EXPECT_THAT(message, HasSubstr("--learning-rate 0.5 against 0.01"));
  EXPECT_THAT(message, HasSubstr("--layers 3 against 2"));
  EXPECT_THAT(message, HasSubstr("--precision bf16 against fp32"));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 1);

  const auto refused = [&](const auto& change) {
    TrainConfig changed = c;
    change(changed);
    EXPECT_THROW(run(changed), SharedError);
  };
  refused([](TrainConfig& t) { t.batch_size = 8; });
  refused([](TrainConfig& t) { t.seed = 4; });
  refused([](TrainConfig& t) { t.optimizer.kind = OptimizerKind::adam; });
  refused([](TrainConfig& t) { t.optimizer.clip_norm = 0; });
  refused([](TrainConfig& t) { t.schedule.schedule = Schedule::wsd; });
  refused([](TrainConfig& t) { t.schedule.warmup_steps = 1; });
  refused([](TrainConfig& t) { t.model.dropout = 0; });
  refused([&](TrainConfig& t) { t.data = folder->path() / "other"; });
  EXPECT_THAT(list_checkpoints(c.run), testing::ElementsAre(2));

  // What shapes no result may change, and a run may be made longer.
  TrainConfig longer = c;
  longer.steps = 4;
  longer.micro_batch_size = 4;
  longer.checkpoint_every = 1;
  longer.recompute = true;
  longer.log_every = 1;
  EXPECT_EQ(run(longer), ExitCode::done);
  EXPECT_THAT(list_checkpoints(c.run), testing::ElementsAre(2, 3, 4));
  EXPECT_THAT(error_of<SharedError>(c), HasSubstr("--steps 2 is less than the 4 steps"));
}

TEST_F(RunTest, StartsFromGivenWeights) {
  const TrainConfig first = config("first", 20);
  run(first);
  TrainConfig second = config("second", 1);
  second.initialize_from = first.run;
  second.seed = 4;
  second.model.dropout = 0;
  run(second);
  // Only the weights are taken: the loss is that of a trained model, and the step is the first.
  EXPECT_EQ(metrics(second)[0]["step"], 1);
  EXPECT_LT(metrics(second)[0]["loss"].get<double>(), 4);

  // Started again with the same options, it goes on by itself.
  second.steps = 2;
  second.schedule.schedule = Schedule::cosine;
  EXPECT_EQ(run(second), ExitCode::done);
  EXPECT_EQ(metrics(second).size(), 2u);

  TrainConfig wrong = config("wrong", 1);
  wrong.initialize_from = first.run;
  wrong.model.hidden_size = 32;
  wrong.model.head_dim = 16;
  EXPECT_THAT(error_of<SharedError>(wrong), HasSubstr("--hidden-size 32 against 16"));
  wrong = config("wrong", 1);
  wrong.initialize_from = first.run;
  wrong.data = folder->path() / "trained";
  wrong.model.vocab_size = 270;
  EXPECT_THAT(error_of<SharedError>(wrong), HasSubstr("another tokenizer"));
}

TEST_F(RunTest, ARunThatDivergesEndsAndLeavesItsCheckpointAlone) {
  TrainConfig c = config("run", 100);
  c.checkpoint_every = 2;
  c.schedule = {Schedule::constant, 1e-3, 0, 0};
  c.steps = 2;
  run(c);
  const std::string before = read_file(checkpoint_folder(c.run, 2) / "index.h5");
  TrainConfig wild = config("wild", 100);
  wild.initialize_from = c.run;
  wild.schedule = {Schedule::constant, 1e37, 0, 0};
  wild.checkpoint_every = 1;
  try {
    run(wild);
    FAIL() << "a run with a rate of 1e37 went well";
  } catch (const SharedError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::data);
    EXPECT_THAT(error.what(), HasSubstr("10 steps in a row were not finite"));
    EXPECT_THAT(error.what(), HasSubstr("--learning-rate"));
    EXPECT_THAT(error.what(), HasSubstr("is good"));
  }
  for (const auto& line : metrics(wild)) {
    EXPECT_EQ(line["skipped"], line["loss"].is_null() || line["grad_norm"].is_null());
  }
  // Whatever happened, no weight that was saved is NaN.
  const Checkpoint last = Checkpoint::open(wild.run);
  Buffer weights(DType::fp32, {last.table().size()});
  last.read(FlatKind::weights, 0, weights.tensor());
  for (int64_t i = 0; i < weights.tensor().size(); i++) {
    ASSERT_FALSE(std::isnan(weights.tensor().as<float>()[i]));
  }
  EXPECT_EQ(read_file(checkpoint_folder(c.run, 2) / "index.h5"), before);
}

TEST_F(RunTest, WhatDoesNotFitIsRefused) {
  TrainConfig c = config("run");
  c.batch_size = 5;
  EXPECT_THROW(run(c), UsageError);
  c = config("run");
  c.model.vocab_size = 200;
  EXPECT_THROW(run(c), DataError);
  c = config("run");
  c.model.num_heads = 3;
  EXPECT_THROW(run(c), UsageError);
  c = config("run");
  c.data = runs.path() / "nothing";
  EXPECT_THROW(run(c), DataError);
  c = config("run");
  std::ofstream(runs.path() / "file") << "in the way";
  c.run = runs.path() / "file" / "run";
  EXPECT_THROW(run(c), Error);
  EXPECT_FALSE(fs::exists(runs.path() / "run"));
}

TEST(ValidationWindows, CostLessThanATenthOfTheTraining) {
  TrainConfig c;
  c.steps = 100;
  c.batch_size = 16;
  EXPECT_EQ(validation_windows(c), 400);
  c.evaluate_every = 10;
  EXPECT_EQ(validation_windows(c), 40);
  c.batch_size = 1;
  c.evaluate_every = 1;
  EXPECT_EQ(validation_windows(c), 1);
}

}  // namespace
}  // namespace lockstep
