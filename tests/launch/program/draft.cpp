#include <fmt/format.h>

#include "tests/launch/program/world.h"

// generate --draft.
namespace lockstep::black_box {
namespace {

using nlohmann::json;
using testing::HasSubstr;

World& world = World::get();

struct Draft : testing::Test {
  static Result generate(const Arguments& more) {
    Arguments arguments{"generate", "--checkpoint", world.run(),    "--precision", "fp32",
                        "--prompt", "The quick",    "--max-tokens", "20"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  // Another model, of 20 tokens' context, on the same data.
  static std::filesystem::path small() {
    static const std::filesystem::path run_folder = [] {
      const auto folder = world.path("small");
      const Result result = run({"train", "--data", world.data(), "--run", folder, "--layers", "1",
                                 "--hidden-size", "8", "--heads", "1", "--context-length", "20",
                                 "--batch-size", "2", "--steps", "2", "--precision", "fp32"});
      EXPECT_EQ(result.code, 0) << result.err;
      return folder;
    }();
    return run_folder;
  }
};

TEST_F(Draft, GreedyTextsAreTheModelsOwn) {
  const Result plain = generate({"--greedy"});
  ASSERT_EQ(plain.code, 0) << plain.err;
  for (const std::filesystem::path& draft :
       {world.run(), small(), std::filesystem::path("prompt-lookup")}) {
    const Result result = generate({"--greedy", "--draft", draft});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.out, plain.out) << draft;
  }
}

TEST_F(Draft, TellsWhatBecameOfIt) {
  const Result result =
      generate({"--draft", world.run(), "--forbid", "256", "--json", "--verbose"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json draft = json::parse(result.out).at("draft");
  EXPECT_GT(draft.at("proposed"), 0);
  EXPECT_EQ(draft.at("accepted"), draft.at("proposed"));
  EXPECT_THAT(result.err, HasSubstr("then         19 tokens in "));
  EXPECT_THAT(result.err,
              HasSubstr(fmt::format("draft        {0} of {0} tokens accepted (100.0 %), ",
                                    draft.at("proposed").get<int>())));
  EXPECT_THAT(result.err, HasSubstr(" tokens a pass\n"));
  // What is accepted behind the end of the text is none of it.
  const std::string text = json::parse(generate({"--greedy", "--json"}).out).at("text");
  const Arguments stopped{"--greedy", "--verbose", "--stop", text.substr(5, 3)};
  const auto tokens_of = [&](const Arguments& more) {
    Arguments arguments = stopped;
    arguments.insert(arguments.end(), more.begin(), more.end());
    const std::string err = generate(arguments).err;
    const size_t begin = err.find("then ");
    return err.substr(begin, err.find(" in ", begin) - begin);
  };
  EXPECT_THAT(tokens_of({}), HasSubstr(" tokens"));
  EXPECT_EQ(tokens_of({"--draft", world.run()}), tokens_of({}));
  EXPECT_FALSE(json::parse(generate({"--json"}).out).contains("draft"));
  EXPECT_THAT(generate({"--draft", small()}).err,
              HasSubstr("the context of the draft holds 20 tokens: nothing is drafted after them"));
}

TEST_F(Draft, OfAnotherTokenizer) {
  const auto folder = world.path("other");
  const Result trained = run({"train", "--data", world.trained_data(), "--run", folder, "--layers",
                              "1", "--hidden-size", "8", "--heads", "1", "--context-length", "16",
                              "--batch-size", "2", "--steps", "2", "--precision", "fp32"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  expect_error(generate({"--draft", folder}), 3,
               {"the draft ", "has another tokenizer than the model", "prompt-lookup"});
}

TEST_F(Draft, ThatDoesNotDo) {
  expect_error(generate({"--draft", world.path("nothing")}), 3, {"nothing", "prompt-lookup"});
  expect_error(generate({"--draft", "prompt-lookup", "--num-beams", "2"}), 2,
               {"--draft contradicts --num-beams", "leave one out"});
  const auto file =
      world.write("draft.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"num_beams\": 2}\n");
  expect_error(run({"generate", "--checkpoint", world.run(), "--prompt-file", file, "--draft",
                    "prompt-lookup"}),
               2, {"draft.jsonl:2: --draft contradicts --num-beams"});
  // Pages of 16 tokens: two of the model, two of the draft, which has a context of 20.
  expect_error(generate({"--draft", small(), "--kv-cache-memory", "0.000006"}), 2,
               {"keys and values of 28 tokens, the draft's too, need"});
}

}  // namespace
}  // namespace lockstep::black_box
