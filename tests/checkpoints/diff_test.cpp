#include <cmath>
#include <limits>

#include "tests/checkpoints/support.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

class Diff : public testing::Test {
 protected:
  Diff() : model_(tiny_gpt2()), size_(ParameterTable(model_).size()) {}

  // Saves under `name` what slice_of gives, after `change`.
  Checkpoint saved(
      const std::string& name, const CheckpointInfo& info,
      const std::function<void(Slice&)>& change = [](Slice&) {}) const {
    Slice slice = slice_of(0, ParameterTable(info.model).size(), 1);
    change(slice);
    CheckpointWriter writer(folder_ / name, 0, 1, 0);
    writer.prepare(info.step);
    writer.save(info, {slice.view});
    writer.wait();
    return Checkpoint::open(folder_ / name);
  }

  const ModelConfig model_;
  const int64_t size_;
  TemporaryFolder folder_;
};

TEST_F(Diff, EqualOnesHaveNoDifference) {
  const Checkpoint a = saved("a", info_of(model_, 1)), b = saved("b", info_of(model_, 1));
  EXPECT_THAT(diff_checkpoints(a, b, false), IsEmpty());
  const auto all = diff_checkpoints(a, b, true);
  EXPECT_GT(all.size(), 3 * a.table().parameters().size());
  for (const TensorDifference& line : all) EXPECT_TRUE(line.equal) << line.name;
}

// Also when they were saved by another number of workers.
TEST_F(Diff, WorkersDoNotMatter) {
  save_as_workers(folder_ / "a", info_of(model_, 1), {0, size_});
  save_as_workers(folder_ / "b", info_of(model_, 1), {0, 17, size_ / 2, size_});
  EXPECT_THAT(
      diff_checkpoints(Checkpoint::open(folder_ / "a"), Checkpoint::open(folder_ / "b"), false),
      IsEmpty());
}

TEST_F(Diff, NamesTensorElementAndDistance) {
  const ParameterTable table(model_);
  const Parameter& up = table.at("layers.1.ffn.up.weight");
  const Parameter& gain = table.at("final_norm.weight");
  const Checkpoint a = saved("a", info_of(model_, 1), [&](Slice& slice) {
    slice.values[0][gain.offset] = 0.0f;
    slice.values[2][gain.offset + 1] = std::numeric_limits<float>::quiet_NaN();
  });
  const Checkpoint b = saved("b", info_of(model_, 1), [&](Slice& slice) {
    slice.values[0][gain.offset] = -0.0f;
    slice.values[1][up.offset + 13] += 0.5f;
    slice.values[1][up.offset + 20] -= 2.0f;
  });
  const auto found = diff_checkpoints(a, b, false);
  ASSERT_EQ(found.size(), 3);
  EXPECT_EQ(found[0].name, "/model/final_norm.weight");  // zeros of two signs are other bits
  EXPECT_EQ(found[0].first_index, 0);
  EXPECT_EQ(found[0].largest, 0);
  EXPECT_EQ(found[1].name, "/optimizer/exp_avg/layers.1.ffn.up.weight");
  EXPECT_EQ(found[1].first_index, 13);
  EXPECT_EQ(found[1].largest, 2);
  EXPECT_EQ(found[2].name, "/optimizer/exp_avg_sq/final_norm.weight");
  EXPECT_EQ(found[2].first_index, 1);
  EXPECT_TRUE(std::isnan(found[2].largest));
}

TEST_F(Diff, TheSameNaNsAreEqual) {
  const auto nans = [](Slice& slice) {
    std::fill(slice.values[0].begin(), slice.values[0].end(),
              std::numeric_limits<float>::quiet_NaN());
  };
  EXPECT_THAT(diff_checkpoints(saved("a", info_of(model_, 1), nans),
                               saved("b", info_of(model_, 1), nans), false),
              IsEmpty());
}

TEST_F(Diff, NamesShapesAndValues) {
  CheckpointInfo other = info_of(model_, 2);
  other.model.num_layers = 1;
  other.model.ffn_size = 8;
  other.run_config["learning_rate"] = 1e-4;
  other.run_config.erase("optimizer");
  other.trainer_state["skipped"] = 3;
  other.tokenizer_json = "{}";
  const Checkpoint a = saved("a", info_of(model_, 1)), b = saved("b", other);
  std::map<std::string, std::string> notes;
  for (const TensorDifference& line : diff_checkpoints(a, b, false)) notes[line.name] = line.note;
  EXPECT_EQ(notes["/model/layers.0.ffn.up.weight"], "shape (7, 6) against (8, 6)");
  EXPECT_EQ(notes["/model/layers.1.ffn.up.weight"], "only in A");
  EXPECT_EQ(notes["/@step"], "1 against 2");
  EXPECT_EQ(notes["/model@num_layers"], "2 against 1");
  EXPECT_EQ(notes["/run_config@learning_rate"], "0.0003 against 0.0001");
  EXPECT_EQ(notes["/run_config@optimizer"], "only in A: \"adamw\"");
  EXPECT_EQ(notes["/trainer_state@skipped"], "only in B: 3");
  EXPECT_THAT(notes["/tokenizer.json"], HasSubstr("against 2"));
}

TEST_F(Diff, AnExportedModelHasNoMoments) {
  const Checkpoint a = saved("a", info_of(model_, 1));
  export_h5(a, folder_ / "model.h5");
  const Checkpoint b = Checkpoint::open(folder_ / "model.h5");
  EXPECT_EQ(b.info().step, 1);
  EXPECT_EQ(b.info().tokenizer_json, a.info().tokenizer_json);
  const auto found = diff_checkpoints(a, b, false);
  EXPECT_EQ(found.size(), 2 * a.table().parameters().size());
  for (const TensorDifference& line : found) {
    EXPECT_THAT(line.name, HasSubstr("/optimizer/"));
    EXPECT_EQ(line.note, "only in A");
  }
  for (const TensorDifference& line : diff_checkpoints(b, a, false)) {
    EXPECT_EQ(line.note, "only in B");
  }
}

}  // namespace
}  // namespace lockstep
