#include "tests/checkpoints/support.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

void expect_whole(const Checkpoint& checkpoint, int64_t step) {
  const int64_t size = checkpoint.table().size();
  for (const FlatKind kind : {FlatKind::weights, FlatKind::exp_avg, FlatKind::exp_avg_sq}) {
    const std::vector<float> values = read_floats(checkpoint, kind, 0, size);
    for (int64_t i = 0; i < size; i++) ASSERT_EQ(values[i], value_at(kind, i, step)) << i;
  }
}

TEST(RoundTrip, AnyNumberOfWorkersWritesAndAnyRangeReads) {
  for (const ModelConfig& model : {tiny_gpt2(), tiny_llama()}) {
    const int64_t size = ParameterTable(model).size();
    // One worker; even; single elements, and an empty slice; borders inside rows.
    for (const std::vector<int64_t>& bounds : std::vector<std::vector<int64_t>>{
             {0, size}, {0, size / 2, size}, {0, 1, 1, 2, size}, {0, 9, 100, 333, size}}) {
      const TemporaryFolder run;
      const CheckpointInfo info = info_of(model, 100);
      save_as_workers(run.path(), info, bounds);
      const Checkpoint checkpoint = Checkpoint::open(run.path());
      EXPECT_EQ(checkpoint.path(), run / "checkpoints/step-00000100");
      EXPECT_EQ(checkpoint.info().step, 100);
      EXPECT_EQ(checkpoint.info().model, model);
      EXPECT_EQ(checkpoint.info().tokenizer_json, info.tokenizer_json);
      EXPECT_EQ(checkpoint.info().trainer_state, info.trainer_state);
      EXPECT_EQ(checkpoint.info().run_config, info.run_config);
      EXPECT_TRUE(checkpoint.has_optimizer_state());
      expect_whole(checkpoint, 100);
      for (int64_t begin = 0; begin < size; begin += 37) {
        const int64_t end = std::min(size, begin + 101);
        const auto values = read_floats(checkpoint, FlatKind::exp_avg, begin, end);
        for (int64_t i = begin; i < end; i++) {
          ASSERT_EQ(values[i - begin], value_at(FlatKind::exp_avg, i, 100)) << i;
        }
      }
      EXPECT_THAT(verify_checkpoint(run.path()), testing::IsEmpty());
    }
  }
}

TEST(RoundTrip, SlicesOfMoreThanABlockOfChecksum) {
  // 3 workers of 1.2 million parameters: blocks of 2^18, the last of each incomplete.
  ModelConfig model = tiny_gpt2();
  model.vocab_size = 600001;
  const int64_t size = ParameterTable(model).size();
  const TemporaryFolder run;
  save_as_workers(run.path(), info_of(model, 7), {0, size / 3, size / 3 * 2 + 1, size});
  const Checkpoint checkpoint = Checkpoint::open(run / "checkpoints/step-00000007");
  expect_whole(checkpoint, 7);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1},
                                   {262143, 262145},
                                   {262144, 524288},
                                   {size / 3 - 1, size / 3 + 1},
                                   {1000, size - 1000},
                                   {size - 1, size}}) {
    const auto values = read_floats(checkpoint, FlatKind::weights, begin, end);
    for (int64_t i = begin; i < end; i++) {
      ASSERT_EQ(values[i - begin], value_at(FlatKind::weights, i, 7)) << i;
    }
  }
}

TEST(RoundTrip, ReadsIntoNarrowerTypes) {
  const TemporaryFolder run;
  const ModelConfig model = tiny_gpt2();
  const int64_t size = ParameterTable(model).size();
  save_as_workers(run.path(), info_of(model, 3), {0, size / 2, size});
  const Checkpoint checkpoint = Checkpoint::open(run.path());
  std::vector<bf16> values(static_cast<size_t>(size));
  checkpoint.read(FlatKind::weights, 0, Tensor(values.data(), DType::bf16, {size}));
  for (int64_t i = 0; i < size; i++) {
    ASSERT_EQ(values[i].bits, from_float<bf16>(value_at(FlatKind::weights, i, 3)).bits);
  }
}

TEST(RoundTrip, KeepsTheNewest) {
  const TemporaryFolder run;
  const ModelConfig model = tiny_gpt2();
  const int64_t size = ParameterTable(model).size();
  for (const int64_t step : {10, 20, 30, 40}) {
    save_as_workers(run.path(), info_of(model, step), {0, size / 2, size}, /*keep=*/2);
  }
  EXPECT_THAT(list_checkpoints(run.path()), testing::ElementsAre(30, 40));
  // Nothing else is left.
  const fs::directory_iterator entries(run / "checkpoints");
  EXPECT_EQ(std::distance(begin(entries), end(entries)), 2);
}

TEST(RoundTrip, SavingAStepAgainReplacesIt) {
  const TemporaryFolder run;
  CheckpointInfo info = info_of(tiny_gpt2(), 10);
  const int64_t size = ParameterTable(info.model).size();
  save_as_workers(run.path(), info, {0, size});
  info.trainer_state["updates"] = 77;
  save_as_workers(run.path(), info, {0, size / 2, size});
  EXPECT_EQ(Checkpoint::open(run.path()).info().trainer_state["updates"], 77);
  EXPECT_THAT(verify_checkpoint(run.path()), testing::IsEmpty());
}

TEST(RoundTrip, APartialFolderIsNoCheckpoint) {
  const TemporaryFolder run;
  fs::create_directories(run / "checkpoints/.step-00000009.partial");
  EXPECT_THAT(list_checkpoints(run.path()), testing::IsEmpty());
  EXPECT_EQ(newest_good_checkpoint(run.path()), std::nullopt);
  EXPECT_THAT(message_of([&] { Checkpoint::open(run.path()); }), HasSubstr("no checkpoint"));
  EXPECT_THAT(message_of([&] { Checkpoint::open(run / "checkpoints/.step-00000009.partial"); }),
              HasSubstr("never completed"));
}

}  // namespace
}  // namespace lockstep
