#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "core/file.h"
#include "data/prepare.h"
#include "tests/trainer/alone.h"
#include "tests/trainer/temporary_folder.h"
#include "trainer/product_record.h"
#include "trainer/replay.h"
#include "trainer/trainer.h"

// On the emulated device alone, whose heuristic does what its environment says.
namespace lockstep {
namespace {

using kernels::ProductAlgorithms;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A process that starts where the heuristic splits sums into so many parts.
void start_anew(const char* split_k) {
  setenv("LOCKSTEP_EMULATION_SPLIT_K", split_k, 1);
  kernels::reuse_product_algorithms({});
}

class ProductRecordTest : public testing::Test {
 protected:
  ProductRecordTest() { start_anew("1"); }
  ~ProductRecordTest() override { start_anew("1"); }

  std::filesystem::path path() const { return folder_.path() / "products.json"; }
  void put(const std::string& text) const { std::ofstream(path()) << text; }
  std::vector<std::string> reuse() { return ProductRecord(folder_.path()).reuse(alone_); }
  ProductAlgorithms algorithms() const {
    ProductAlgorithms all = kernels::product_algorithms();
    all.by_problem = {{"a problem", "0123"}, {"another", ""}};
    return all;
  }

  TemporaryFolder folder_;
  Alone alone_;
};

TEST_F(ProductRecordTest, IsReadAsItWasWritten) {
  kernels::reuse_product_algorithms(algorithms().by_problem);
  EXPECT_THAT(ProductRecord(folder_.path()).write(), IsEmpty());
  EXPECT_EQ(read_file(path()), to_text(algorithms()));
  kernels::reuse_product_algorithms({});
  EXPECT_THAT(reuse(), IsEmpty());
  EXPECT_EQ(kernels::product_algorithms().by_problem, algorithms().by_problem);
}

TEST_F(ProductRecordTest, OfAnotherLibraryOrGpuIsNotTaken) {
  for (const bool gpu : {false, true}) {
    ProductAlgorithms other = algorithms();
    (gpu ? other.gpu : other.library) = "something else";
    put(to_text(other));
    EXPECT_THAT(reuse(),
                ElementsAre(testing::AllOf(
                    HasSubstr(path().string() + " is of "), HasSubstr("something else"),
                    HasSubstr(algorithms().library), HasSubstr("bits from here on may differ"))));
    EXPECT_THAT(kernels::product_algorithms().by_problem, IsEmpty());
  }
}

TEST_F(ProductRecordTest, DamagedOrMissingIsNotTaken) {
  EXPECT_THAT(reuse(), ElementsAre(HasSubstr(path().string() + " is missing")));
  const std::string whole = to_text(algorithms());
  std::vector<std::string> damaged = {"", "null", "[]", "{}", whole.substr(0, whole.size() / 2)};
  for (const char* changed : {"0123", "another", "cuBLASLt", "checksum"}) {
    damaged.push_back(whole);
    damaged.back()[whole.find(changed) + 1] = '4';
  }
  for (const std::string& text : damaged) {
    SCOPED_TRACE(text);
    put(text);
    EXPECT_THAT(reuse(), ElementsAre(HasSubstr(path().string() + " is damaged")));
    EXPECT_THAT(kernels::product_algorithms().by_problem, IsEmpty());
  }
  std::filesystem::remove(path());
  std::filesystem::create_directory(path());
  EXPECT_THAT(reuse(), ElementsAre(HasSubstr("is damaged")));
}

// A small run on the device.
class RecordedRun : public ProductRecordTest {
 protected:
  RecordedRun() {
    std::ofstream file(folder_.path() / "text.txt");
    for (int i = 0; i < 200; i++)
      file << "The quick brown fox, number " << i * 7919 % 1000 << ".\n";
    file.close();
    prepare({.inputs = {folder_.path() / "text.txt"},
             .output = folder_.path() / "data",
             .tokenizer = "bytes"});
  }
  TrainConfig config(const std::string& run, int64_t steps) const {
    TrainConfig c;
    c.data = folder_.path() / "data";
    c.run = folder_.path() / run;
    c.device = Device::cuda;
    c.steps = steps;
    c.model.vocab_size = 257;
    c.model.context_length = c.model.hidden_size = 16;
    c.model.num_layers = c.model.num_heads = c.model.num_kv_heads = 1;
    c.model.head_dim = 16;
    c.model.ffn_size = 64;
    c.batch_size = c.micro_batch_size = 2;
    c.evaluate_every = 0;
    c.checkpoint_every = 1;
    return c;
  }
  std::string run(const std::string& name, int64_t steps) {
    testing::internal::CaptureStdout();
    EXPECT_EQ(train(config(name, steps), alone_), ExitCode::done);
    return testing::internal::GetCapturedStdout();
  }
  std::string weights(const std::string& name) const {
    const Checkpoint checkpoint = Checkpoint::open(folder_.path() / name);
    Buffer read(DType::fp32, {checkpoint.table().size()});
    checkpoint.read(FlatKind::weights, 0, read.tensor());
    return {static_cast<const char*>(read.tensor().data()), static_cast<size_t>(read.size_bytes())};
  }
  Replay replayed(const std::string& name) {
    Checkpoint from = Checkpoint::open(checkpoint_folder(folder_.path() / name, 1));
    const Checkpoint to = Checkpoint::open(checkpoint_folder(folder_.path() / name, 3));
    const Dataset dataset = Dataset::open(folder_.path() / "data");
    return replay(config(name, 3), std::move(from), to, dataset, alone_, [](int64_t) {});
  }
};

// What it does not hold is chosen by a heuristic that splits sums: the bits tell the two apart.
TEST_F(RecordedRun, GoesOnWithItsAlgorithms) {
  run("whole", 3);
  for (const bool recorded : {true, false}) {
    const std::string name = recorded ? "recorded" : "not recorded";
    start_anew("1");
    run(name, 1);
    ASSERT_TRUE(std::filesystem::exists(folder_.path() / name / "products.json"));
    if (!recorded) std::filesystem::remove(folder_.path() / name / "products.json");
    start_anew("2");
    const std::string said = run(name, 3);
    EXPECT_EQ(said.find("products.json is missing") == std::string::npos, recorded) << said;
    EXPECT_EQ(weights(name) == weights("whole"), recorded);
  }
}

TEST_F(RecordedRun, IsReplayedWithItsAlgorithms) {
  run("run", 3);
  start_anew("2");
  EXPECT_TRUE(replayed("run").same);
  std::filesystem::remove(folder_.path() / "run" / "products.json");
  start_anew("2");
  const Replay differs = replayed("run");
  EXPECT_FALSE(differs.same);
  EXPECT_EQ(differs.step, 2);
  EXPECT_THAT(differs.notes, ElementsAre(HasSubstr("products.json is missing")));
}

TEST_F(RecordedRun, SaysOnceThatTheLibraryRefusesItsAlgorithms) {
  run("run", 1);
  ProductAlgorithms garbled = kernels::product_algorithms();
  for (auto& [problem, algorithm] : garbled.by_problem) algorithm.replace(0, 4, "0000");
  std::ofstream(folder_.path() / "run" / "products.json") << to_text(garbled);
  start_anew("1");
  testing::internal::CaptureStderr();
  const std::string said = run("run", 3);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("no algorithm of ours"));
  const size_t first = said.find("cuBLASLt refuses algorithms");
  ASSERT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find("cuBLASLt refuses algorithms", first + 1), std::string::npos) << said;
  EXPECT_THAT(read_file(folder_.path() / "run" / "products.json"),
              testing::Not(HasSubstr("\"0000")));
}

}  // namespace
}  // namespace lockstep
