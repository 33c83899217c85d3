#include <fmt/format.h>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

World& world = World::get();

struct Checkpoints : testing::Test {
  static fs::path copy() {
    fs::remove_all(world.path("copy"));
    return world.copy(world.run(), "copy");
  }
  static fs::path step(const fs::path& folder, int number) {
    return folder / "checkpoints" / fmt::format("step-{:08}", number);
  }
  static fs::path shard(const fs::path& folder, int number) {
    return step(folder, number) / "shard-00000-of-00001.h5";
  }
  static Result checkpoint(Arguments arguments, const Options& options = {}) {
    arguments.insert(arguments.begin(), "checkpoint");
    return run(arguments, options);
  }
  static std::string evaluated(const fs::path& where) {
    const Result result = run({"evaluate", "--checkpoint", where, "--data", world.data(), "--json",
                               "--precision", "fp32"});
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out;
  }
};

TEST_F(Checkpoints, ListAndInspect) {
  const Result list = checkpoint({"list", world.run()});
  EXPECT_EQ(list.code, 0);
  EXPECT_EQ(lines_of(list.out).size(), 3u) << list.out;
  EXPECT_THAT(list.out, HasSubstr(step(world.run(), 20).string()));
  EXPECT_THAT(list.out, HasSubstr(step(world.run(), 40).string()));
  const Result inspect = checkpoint({"inspect", world.run()});
  EXPECT_EQ(inspect.code, 0);
  for (const char* part : {"step-00000040", "embedding.tokens.weight", "(257, 16)", "learning_rate",
                           "hidden_size", "updates"}) {
    EXPECT_THAT(inspect.out, HasSubstr(part));
  }
}

TEST_F(Checkpoints, DiffTellsEqualFromDifferent) {
  const Result same = checkpoint({"diff", world.run(), step(world.run(), 40)});
  EXPECT_EQ(same.code, 0);
  EXPECT_THAT(same.out, HasSubstr("the same, bit for bit"));
  const Result other = checkpoint({"diff", world.run(), step(world.run(), 20)});
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.out, HasSubstr("different  /model/embedding.tokens.weight: by up to"));
  EXPECT_THAT(lines_of(other.out).back(), HasSubstr("differences"));
}

TEST_F(Checkpoints, WhatIsNoCheckpoint) {
  const std::string nowhere = world.path("nowhere");
  for (const char* action : {"inspect", "verify"}) {
    expect_error(checkpoint({action, nowhere}), 3, {"there is no", "nowhere", "model.h5"});
  }
  expect_error(checkpoint({"list", nowhere}), 3, {"nowhere is not a run folder"});
  expect_error(checkpoint({"list", world.data()}), 3, {"data holds no checkpoint"});
  expect_error(checkpoint({"inspect", world.data()}), 3, {"data is not a checkpoint"});
  expect_error(checkpoint({"inspect", world.text()}), 3, {"text.txt is not a checkpoint"});
  expect_error(checkpoint({"diff", world.run(), nowhere}), 3, {"there is no", "nowhere"});
  for (const int workers : {0, 3}) {
    expect_error(
        run({"evaluate", "--checkpoint", nowhere, "--data", world.data()}, {.workers = workers}), 3,
        {"there is no", "nowhere"});
  }
  expect_error(run({"generate", "--checkpoint", nowhere, "--prompt", "a"}), 3, {"nowhere"});
}

TEST_F(Checkpoints, AFlippedByteIsFoundAndTheOlderOneTaken) {
  const fs::path folder = copy();
  flip_a_byte(shard(folder, 40), 0.2);  // in the weights, which are the first third
  const Result verify = checkpoint({"verify", folder});
  EXPECT_EQ(verify.code, 3);
  EXPECT_THAT(verify.out, HasSubstr("shard-00000-of-00001.h5: "));
  EXPECT_THAT(verify.out, HasSubstr("is damaged"));
  EXPECT_THAT(verify.err, HasSubstr("damaged (1 fault)"));
  EXPECT_EQ(checkpoint({"verify", step(folder, 20)}).code, 0);

  // Named by its step folder it is refused, by its run folder passed over.
  expect_error(run({"train", "--data", world.data(), "--run", world.path("unwanted"),
                    "--initialize-from", step(folder, 40) / "index.h5", "--steps", "1"}),
               3, {"damaged", "another checkpoint"});
  EXPECT_EQ(evaluated(folder), evaluated(step(world.run(), 20)));

  const Result resumed = run({"train", "--run", folder}, {.workers = 1});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("warning: skipping a damaged checkpoint"));
  EXPECT_THAT(resumed.err, HasSubstr("going on from " + step(folder, 20).string()));
  const Result diff = checkpoint({"diff", folder, world.run()});
  EXPECT_EQ(diff.code, 0) << diff.out;
}

TEST_F(Checkpoints, TruncatedFiles) {
  const fs::path folder = copy();
  fs::resize_file(shard(folder, 40), 3000);
  expect_error(run({"generate", "--checkpoint", step(folder, 40), "--prompt", "a"}), 3,
               {"shard-00000-of-00001.h5 holds 3000 bytes", "another checkpoint"});
  fs::resize_file(step(folder, 20) / "index.h5", 300);
  expect_error(checkpoint({"inspect", step(folder, 20)}), 3, {"index.h5 holds 300 bytes"});
  for (const int workers : {0, 2}) {
    expect_error(run({"train", "--run", folder}, {.workers = workers}), 3,
                 {"no checkpoint of", "is good", "step-00000040"});
  }
  EXPECT_EQ(checkpoint({"verify", folder}).code, 3);
  fs::remove(step(folder, 40) / "index.h5");
  expect_error(checkpoint({"inspect", step(folder, 40)}), 3, {"holds no index.h5"});
}

TEST_F(Checkpoints, ExportAndImportKeepTheWeights) {
  const fs::path h5 = world.path("model.h5"), hf = world.path("hf"), back = world.path("back.h5"),
                 hf_again = world.path("hf_again");
  EXPECT_EQ(checkpoint({"export", world.run(), "--format", "h5", "--output", h5}).code, 0);
  EXPECT_EQ(checkpoint({"export", world.run(), "--format", "hf", "--output", hf}).code, 0);
  EXPECT_EQ(checkpoint({"import", hf, "--output", back}).code, 0);
  EXPECT_EQ(checkpoint({"export", back, "--format", "hf", "--output", hf_again}).code, 0);
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    EXPECT_EQ(read_text(hf / name), read_text(hf_again / name)) << name;
  }
  for (const fs::path& model : {h5, back}) EXPECT_EQ(checkpoint({"verify", model}).code, 0);

  // What a model that was not trained here lacks differs, its weights do not.
  const Result diff = checkpoint({"diff", h5, back, "--all"});
  EXPECT_THAT(diff.out, HasSubstr("equal      /model/embedding.tokens.weight"));
  EXPECT_THAT(diff.out, Not(HasSubstr("different  /model/")));
  EXPECT_EQ(evaluated(h5), evaluated(world.run()));
  EXPECT_EQ(evaluated(back), evaluated(world.run()));

  expect_error(checkpoint({"export", world.run(), "--format", "h5", "--output", h5}), 2,
               {"model.h5 exists"});
  expect_error(checkpoint({"export", world.run(), "--format", "hf", "--output", hf}), 2,
               {"hf exists and is not an empty folder"});
  flip_a_byte(h5, 0.5);
  EXPECT_EQ(checkpoint({"verify", h5}).code, 3);
  expect_error(run({"generate", "--checkpoint", h5, "--prompt", "a"}), 3, {"model.h5", "damaged"});
}

TEST_F(Checkpoints, WhatCannotBeImportedOrExported) {
  const fs::path output = world.path("unwanted.h5");
  expect_error(checkpoint({"import", world.path("nowhere"), "--output", output}), 3, {"nowhere"});
  fs::create_directories(world.path("hollow"));
  expect_error(checkpoint({"import", world.path("hollow"), "--output", output}), 3,
               {"hollow: no tokenizer there"});
  const fs::path hf = world.path("other_hf");
  EXPECT_EQ(checkpoint({"export", world.run(), "--format", "hf", "--output", hf}).code, 0);
  expect_error(checkpoint({"inspect", hf}), 3, {"lockstep checkpoint import"});
  fs::resize_file(hf / "model.safetensors", fs::file_size(hf / "model.safetensors") / 2);
  expect_error(checkpoint({"import", hf, "--output", output}), 3, {"model.safetensors"});
  fs::create_directories(world.path("bert"));
  world.write("bert/config.json", "{\"model_type\": \"bert\"}");
  fs::copy(hf / "tokenizer.json", world.path("bert/tokenizer.json"));
  expect_error(checkpoint({"import", world.path("bert"), "--output", output}), 3, {"bert"});
  expect_error(checkpoint({"export", world.run(), "--format", "h5", "--output",
                           world.path("missing/model.h5")}),
               3, {"cannot create", "missing"});
  expect_error(checkpoint({"export", world.run(), "--format", "onnx", "--output", output}), 2,
               {"one of h5, hf"});
  EXPECT_FALSE(fs::exists(output));
}

}  // namespace
}  // namespace lockstep::black_box
