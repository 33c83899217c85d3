#include "trainer/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "comm/agreement.h"
#include "core/file.h"
#include "data/prepare.h"
#include "tests/trainer/alone.h"
#include "tests/trainer/temporary_folder.h"
#include "trainer/trainer.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// A run of 12 steps with checkpoints at 4, 8 and 12, made once.
struct ReplayTest : testing::Test {
  static void SetUpTestSuite() {
    folder = new TemporaryFolder();
    std::ofstream text(folder->path() / "text.txt");
    for (int i = 0; i < 400; i++) text << "a line with number " << i * 7919 % 1000 << ".\n";
    text.close();
    prepare({.inputs = {folder->path() / "text.txt"},
             .output = folder->path() / "data",
             .tokenizer = "bytes"});
    Alone alone;
    train(config(), alone);
  }
  static void TearDownTestSuite() { delete folder; }

  static TrainConfig config() {
    TrainConfig c;
    c.data = folder->path() / "data";
    c.run = folder->path() / "run";
    c.steps = 12;
    c.model.vocab_size = 257;
    c.model.context_length = 16;
    c.model.num_layers = 1;
    c.model.hidden_size = 16;
    c.model.num_heads = c.model.num_kv_heads = 2;
    c.model.head_dim = 8;
    c.model.ffn_size = 32;
    c.model.dropout = 0.1f;
    c.batch_size = 4;
    c.micro_batch_size = 1;
    c.virtual_workers = 2;
    c.checkpoint_every = 4;
    return c;
  }

  void SetUp() override {
    std::filesystem::copy(folder->path() / "run", run(), std::filesystem::copy_options::recursive);
  }

  std::filesystem::path run() const { return copy.path() / "run"; }
  Checkpoint at(int64_t step) const { return Checkpoint::open(checkpoint_folder(run(), step)); }

  Replay replayed(int64_t from, int64_t to) {
    TrainConfig c = config();
    c.run = run();
    const Dataset dataset = Dataset::open(c.data);
    return replay(c, at(from), at(to), dataset, alone, [&](int64_t step) { last = step; });
  }

  // The checkpoint of `step` again, with one bit of one weight changed.
  void damage(int64_t step, const std::string& parameter) {
    const Checkpoint checkpoint = at(step);
    const int64_t size = checkpoint.table().size();
    std::vector<Buffer> flat;
    for (FlatKind kind : {FlatKind::weights, FlatKind::exp_avg, FlatKind::exp_avg_sq}) {
      checkpoint.read(kind, 0, flat.emplace_back(DType::fp32, Shape{size}).tensor());
    }
    auto* bits = static_cast<uint32_t*>(flat[0].tensor().data());
    bits[checkpoint.table().at(parameter).offset + 5] ^= 1;
    CheckpointWriter writer(run(), 0, 1, 0);
    writer.prepare(step);
    writer.save(checkpoint.info(),
                {{{0, size}, flat[0].tensor(), flat[1].tensor(), flat[2].tensor()}});
    writer.wait();
  }

  static TemporaryFolder* folder;
  TemporaryFolder copy;
  Alone alone;
  int64_t last = 0;
};
TemporaryFolder* ReplayTest::folder = nullptr;

TEST_F(ReplayTest, AgreesWithARunThatIsWhatItSays) {
  const std::string metrics = read_file(run() / "metrics.jsonl");
  EXPECT_TRUE(replayed(4, 12).same);
  EXPECT_EQ(last, 12);
  EXPECT_TRUE(replayed(8, 12).same);
  EXPECT_EQ(read_file(run() / "metrics.jsonl"), metrics) << "a replay writes nothing";
  EXPECT_THAT(list_checkpoints(run()), testing::ElementsAre(4, 8, 12));
}

TEST_F(ReplayTest, NamesTheFirstCheckpointAndTheTensorThatDiffer) {
  damage(8, "layers.0.ffn.up.weight");
  damage(12, "final_norm.weight");
  const Replay replay = replayed(4, 12);
  EXPECT_FALSE(replay.same);
  EXPECT_EQ(replay.step, 8);
  EXPECT_THAT(replay.what, StartsWith("/model/layers.0.ffn.up.weight in "));
  EXPECT_THAT(replay.what, HasSubstr("step-00000008, first at element 5"));
}

TEST_F(ReplayTest, NamesTheStepWhoseLossIsNotWhatWasNoted) {
  std::string metrics = read_file(run() / "metrics.jsonl");
  const size_t line = metrics.find("{\"step\":7,");
  const size_t digit = metrics.find('.', metrics.find("\"loss\":", line)) + 3;
  metrics[digit] = metrics[digit] == '1' ? '2' : '1';
  write_file_atomically(run() / "metrics.jsonl", metrics);
  const Replay replay = replayed(4, 12);
  EXPECT_FALSE(replay.same);
  EXPECT_EQ(replay.step, 7);
  EXPECT_THAT(replay.what, StartsWith("loss "));
  EXPECT_THAT(replay.what, HasSubstr("noted was"));
}

TEST_F(ReplayTest, RefusesWhatDoesNotBelongTogether) {
  EXPECT_THROW(replayed(12, 4), Error);
  EXPECT_THROW(replayed(4, 4), Error);
  TrainConfig other = config();
  other.run = run();
  other.virtual_workers = 4;
  const Dataset dataset = Dataset::open(other.data);
  try {
    replay(other, at(4), at(8), dataset, alone, [](int64_t) {});
    ADD_FAILURE() << "four virtual workers have other bits";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::usage);
    EXPECT_THAT(error.what(), HasSubstr("--virtual-workers 4 against 2"));
  }
}

}  // namespace
}  // namespace lockstep
