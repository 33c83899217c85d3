#include "tests/launch/program/world.h"

// generate with several prompts at a time.
namespace lockstep::black_box {
namespace {

using nlohmann::json;
using testing::HasSubstr;

World& world = World::get();

struct Batch : testing::Test {
  // Twelve prompts of several lengths, some with the same beginning, of several lengths of text.
  static Result generate(const Arguments& more) {
    std::string requests;
    for (int i = 0; i < 12; i++) {
      const json request = {{"prompt", std::string("The quick brown fox").substr(0, 2 + i)},
                            {"max_tokens", 3 + 5 * i % 13},
                            {"temperature", 1.5}};
      requests += request.dump() + "\n";
    }
    Arguments arguments{"generate",
                        "--checkpoint",
                        world.run(),
                        "--precision",
                        "fp32",
                        "--prompt-file",
                        world.write("batch.jsonl", requests)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  static std::string ids(const Arguments& more) {
    Arguments arguments = more;
    arguments.emplace_back("--json");
    const Result result = generate(arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    std::string all;
    for (const std::string& line : lines_of(result.out)) {
      const json object = json::parse(line);
      all += object.at("prompt").dump() + object.at("tokens").dump();
    }
    return all;
  }
};

TEST_F(Batch, TextsAndTheirOrderDoNotDependOnIt) {
  const std::string want = ids({"--batch-size", "1", "--threads", "1"});
  const std::string text = generate({"--batch-size", "1", "--threads", "1"}).out;
  EXPECT_EQ(lines_of(want).size(), 1u);
  for (const Arguments& more : {Arguments{"--batch-size", "2"},
                                {},
                                {"--batch-size", "5", "--threads", "2"},
                                {"--kv-cache-memory", "0.00003"}}) {
    EXPECT_EQ(ids(more), want);
    EXPECT_EQ(generate(more).out, text);
  }
}

// A page of 16 tokens of this model is 4 KiB.
TEST_F(Batch, NoMemoryForOneRequest) {
  expect_error(
      generate({"--kv-cache-memory", "0.000006"}), 2,
      {"batch.jsonl:", "tokens need 8.0 KiB", "--kv-cache-memory is 6.3 KiB", "--max-tokens"});
  expect_error(generate({"--kv-cache-memory", "0"}), 2, {"--kv-cache-memory 0"});
  expect_error(generate({"--batch-size", "0"}), 2, {"--batch-size 0"});
}

TEST_F(Batch, APromptThatDoesNotDoIsNamed) {
  const auto file = world.write("long", "The\nquick\n" + std::string(43, 'x') + "\n");
  const Result result = run({"generate", "--checkpoint", world.run(), "--prompt-file", file});
  expect_error(result, 2, {"prompt 3: the prompt has 43 tokens", "context holds 32"});
  EXPECT_EQ(result.out, "");
}

}  // namespace
}  // namespace lockstep::black_box
