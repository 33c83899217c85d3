#include <cmath>
#include <fstream>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

World& world = World::get();

struct Evaluate : testing::Test {};

TEST_F(Evaluate, TheSameFigureOnAnyNumberOfWorkers) {
  for (const char* split : {"validation", "train"}) {
    const Arguments arguments{"evaluate",   "--checkpoint", world.run(), "--data",
                              world.data(), "--split",      split,       "--json"};
    const Result alone = run(arguments);
    ASSERT_EQ(alone.code, 0) << alone.err;
    for (const int workers : {1, 2, 3}) {
      const Result result = run(arguments, {.workers = workers});
      EXPECT_EQ(result.code, 0) << result.err;
      EXPECT_EQ(result.out, alone.out) << workers << " workers";
    }
    const json figures = json::parse(alone.out);
    EXPECT_EQ(figures.size(), 5u);
    const double loss = figures.at("loss"), tokens = figures.at("tokens");
    // Each is rounded once or twice from the same sum of losses.
    EXPECT_NEAR(figures.at("perplexity").get<double>(), std::exp(loss), 1e-9 * std::exp(loss));
    EXPECT_NEAR(figures.at("bits_per_byte").get<double>(),
                loss * tokens / figures.at("bytes").get<double>() / std::log(2.0), 1e-9);
    const json described = json::parse(read_text(world.data() / "dataset.json"));
    // Each token is predicted once, but the first, which nothing precedes.
    EXPECT_EQ(figures.at("tokens").get<int64_t>(),
              described.at("splits").at(split).at("tokens").get<int64_t>() - 1);
  }
}

TEST_F(Evaluate, SlidingWindowsAndAnInterval) {
  const auto evaluate = [](const Arguments& more, int workers = 0) {
    Arguments arguments{"evaluate", "--checkpoint", world.run(), "--data", world.data()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, {.workers = workers});
  };
  const json plain = json::parse(evaluate({"--json"}).out);
  const Arguments strided{"--json", "--stride", "8", "--bootstrap", "200"};
  const Result alone = evaluate(strided);
  ASSERT_EQ(alone.code, 0) << alone.err;
  EXPECT_EQ(evaluate(strided, 2).out, alone.out);
  const json figures = json::parse(alone.out);
  EXPECT_EQ(figures.at("tokens"), plain.at("tokens"));
  // Every token has 24 of 32 before it at least: a model that has learned anything gains.
  EXPECT_LT(figures.at("loss"), plain.at("loss"));
  EXPECT_LT(figures.at("loss_interval")[0], figures.at("loss"));
  EXPECT_GT(figures.at("loss_interval")[1], figures.at("loss"));
  EXPECT_EQ(evaluate({"--json", "--stride", "32"}).out, plain.dump() + "\n");
  EXPECT_THAT(evaluate({"--bootstrap", "200"}).out, HasSubstr("nats a token (95 %: "));
  expect_error(evaluate({"--stride", "33"}, 2), 2, {"--stride 33", "the model's context holds 32"});
  expect_error(evaluate({"--stride", "0"}), 2, {"--stride 0: a whole number of at least 1"});
  expect_error(evaluate({"--bootstrap", "x"}), 2, {"--bootstrap x: a whole number from 1"});
}

TEST_F(Evaluate, Tasks) {
  const auto evaluate = [](const fs::path& task, const Arguments& more = {}, int workers = 0) {
    Arguments arguments{"evaluate", "--checkpoint", world.run(), "--task",
                        task,       "--precision",  "fp32"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, {.workers = workers});
  };
  // The model has learned at least which letters there are.
  const auto choices =
      world.write("choices.jsonl",
                  R"({"context": "The quick", "choices": ["brown", "~~~~~"], "answer": "brown"})"
                  "\n"
                  R"({"context": "jumps over the", "choices": ["~~~~", "lazy"], "answer": 1})"
                  "\n"
                  R"({"context": "jumps over the", "choices": ["lazy", "~~~~"], "answer": 1})"
                  "\n");
  const Arguments json_and_interval{"--json", "--bootstrap", "100"};
  const Result alone = evaluate(choices, json_and_interval);
  ASSERT_EQ(alone.code, 0) << alone.err;
  const json figures = json::parse(alone.out);
  EXPECT_EQ(figures.at("kind"), "multiple_choice");
  EXPECT_EQ(figures.at("items"), 3);
  EXPECT_DOUBLE_EQ(figures.at("accuracy"), 2.0 / 3);
  EXPECT_DOUBLE_EQ(figures.at("accuracy_norm"), 2.0 / 3);
  EXPECT_EQ(figures.at("accuracy_interval").size(), 2u);
  for (const int workers : {2, 4}) {  // also more than items
    EXPECT_EQ(evaluate(choices, json_and_interval, workers).out, alone.out) << workers;
  }
  const auto words = world.write("words.jsonl", "{\"text\": \"over the lazy\"}\n");
  const Result last_word = evaluate(words);
  for (const char* row : {"last_word", "accuracy ", "perplexity "}) {
    EXPECT_THAT(last_word.out, HasSubstr(row));
  }
  const auto matches = world.write(
      "matches.jsonl", "{\"context\": \"The\", \"answer\": \"no such\", \"max_tokens\": 8}\n");
  EXPECT_EQ(json::parse(evaluate(matches, {"--json"}).out),
            json({{"kind", "exact_match"}, {"items", 1}, {"accuracy", 0.0}}));

  const auto wrong = world.write("wrong.jsonl", read_text(choices) + "{\"contxt\": \"a\"}\n");
  expect_error(evaluate(wrong, {}, 2), 3, {"wrong.jsonl:4: \"choices\""});
  expect_error(evaluate(world.path("nowhere")), 3, {"nowhere"});
  const auto beyond = world.write("long.jsonl", "{\"text\": \"a " + std::string(40, 'b') + "\"}\n");
  expect_error(evaluate(beyond, {}, 2), 3, {"long.jsonl:1: ", "41 tokens", "context of 32"});
  const auto no_room = world.write("room.jsonl", "{\"context\": \"a\", \"answer\": \"b\"}\n");
  expect_error(evaluate(no_room, {}, 2), 3,
               {"room.jsonl:1: \"max_tokens\" is 32", "context of 32"});
  expect_error(evaluate(choices, {"--data", world.data()}), 2, {"--task contradicts --data"});
  expect_error(evaluate(choices, {"--stride", "4"}), 2, {"--task contradicts --stride"});
}

TEST_F(Evaluate, RefusesAModelThatComputesNoNumbers) {
  const auto hf = world.path("hf-nan"), h5 = world.path("nan.h5");
  ASSERT_EQ(run({"checkpoint", "export", world.run(), "--format", "hf", "--output", hf}).code, 0);
  std::string weights = read_text(hf / "model.safetensors");
  weights.replace(weights.size() - 2, 2, "\xc0\x7f");  // a NaN's upper half, in fp32 and bf16
  std::ofstream(hf / "model.safetensors") << weights;
  ASSERT_EQ(run({"checkpoint", "import", hf, "--output", h5}).code, 0);
  const auto task = world.write("nan.jsonl", "{\"text\": \"over the lazy\"}\n");
  for (const int workers : {0, 2}) {
    const Options options{.workers = workers};
    expect_error(run({"evaluate", "--checkpoint", h5, "--data", world.data()}, options), 3,
                 {"nan.h5: the loss is nan", "the weights are damaged"});
    expect_error(run({"evaluate", "--checkpoint", h5, "--task", task}, options), 3,
                 {"logit of token 0 is nan"});
  }
}

TEST_F(Evaluate, TableForPeople) {
  const Result result = run({"evaluate", "--checkpoint", world.run(), "--data", world.data()});
  EXPECT_EQ(result.code, 0);
  for (const char* row : {"loss ", "perplexity ", "bits a byte ", "tokens "}) {
    EXPECT_THAT(result.out, HasSubstr(row));
  }
}

struct Generate : testing::Test {
  static Result generate(const Arguments& more, const std::string& input = "") {
    Arguments arguments{"generate", "--checkpoint", world.run()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, {.input = input});
  }
  static std::vector<json> objects(const Arguments& more, const std::string& input = "") {
    Arguments arguments = more;
    arguments.insert(arguments.end(), {"--json", "--max-tokens", "8"});
    const Result result = generate(arguments, input);
    EXPECT_EQ(result.code, 0) << result.err;
    std::vector<json> all;
    for (const std::string& line : lines_of(result.out)) all.push_back(json::parse(line));
    return all;
  }
};

TEST_F(Generate, JsonOfSeveralPrompts) {
  const auto all = objects({"--prompt", "The quick", "--prompt", "lazy \"dog\"\n"});
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].at("prompt"), "The quick");
  EXPECT_EQ(all[1].at("prompt"), "lazy \"dog\"\n");
  for (const json& object : all) {
    EXPECT_EQ(object.size(), 5u);
    EXPECT_EQ(object.at("tokens").size(), 8u);
    EXPECT_EQ(object.at("finish_reason"), "length");
    EXPECT_GT(object.at("tokens_per_second").get<double>(), 0);
    EXPECT_TRUE(object.at("text").is_string());
  }
}

TEST_F(Generate, PromptsFromStdinAndAFile) {
  const auto typed = objects({"--greedy"}, "The quick\n");
  const auto named = objects({"--greedy", "--prompt", "The quick"});
  const auto listed = objects(
      {"--greedy", "--prompt-file", world.write("prompts", "The quick\n\nlazy dog\r\n").string()});
  ASSERT_EQ(typed.size(), 1u);
  ASSERT_EQ(listed.size(), 2u);
  for (const json& object : {typed[0], named[0], listed[0]}) {
    EXPECT_EQ(object.at("prompt"), "The quick");
    EXPECT_EQ(object.at("tokens"), typed[0].at("tokens"));
  }
  EXPECT_EQ(listed[1].at("prompt"), "lazy dog");
}

TEST_F(Generate, TheSameSeedGivesTheSameText) {
  const Arguments greedy{"--prompt", "The", "--greedy", "--max-tokens", "12"};
  EXPECT_EQ(generate(greedy).out, generate(greedy).out);
  const auto with_seed = [](const char* seed) {
    return generate({"--prompt", "The", "--seed", seed, "--max-tokens", "12"}).out;
  };
  EXPECT_EQ(with_seed("1"), with_seed("1"));
  EXPECT_NE(with_seed("1"), with_seed("2"));
  // One token to choose from, or no randomness left, is greedy.
  const std::string likeliest = generate(greedy).out;
  for (const auto& [option, value] : {std::pair{"--top-k", "1"}, {"--temperature", "0"}}) {
    EXPECT_EQ(generate({"--prompt", "The", option, value, "--max-tokens", "12"}).out, likeliest);
  }
}

TEST_F(Generate, StopsAtAText) {
  const std::string whole =
      objects({"--prompt", "The", "--seed", "4", "--temperature", "0.5"})[0].at("text");
  ASSERT_GE(whole.size(), 4u);
  const std::string stop = whole.substr(2, 2);
  const json stopped = objects({"--prompt", "The", "--seed", "4", "--temperature", "0.5", "--stop",
                                stop, "--stop", "never"})[0];
  EXPECT_EQ(stopped.at("finish_reason"), "stop");
  EXPECT_EQ(stopped.at("text"), whole.substr(0, whole.find(stop)));
}

TEST_F(Generate, StreamsThePromptAndTheText) {
  const json object = objects({"--prompt", "The", "--greedy"})[0];
  const Result streamed = generate({"--prompt", "The", "--greedy", "--max-tokens", "8"});
  EXPECT_EQ(streamed.out, "The" + object.at("text").get<std::string>() + "\n");
  EXPECT_THAT(streamed.err, HasSubstr("8 tokens"));
}

TEST_F(Generate, PromptsThatDoNotDo) {
  expect_error(generate({"--prompt", std::string(43, 'x')}), 2,
               {"the prompt has 43 tokens", "context holds 32"});
  expect_error(generate({"--prompt-file", world.path("nowhere")}), 3, {"nowhere"});
  expect_error(generate({"--prompt-file", world.write("none", "\n\n")}), 3, {"holds no prompt"});
  expect_error(generate({"--prompt", "a", "--stop", ""}), 2, {"--stop is empty"});
  expect_error(generate({"The quick"}), 2, {"'The quick' is not expected here"});
  // At the end of the context, not an error.
  const Result full = generate({"--prompt", std::string(31, 'x'), "--max-tokens", "8"});
  EXPECT_EQ(full.code, 0);
  EXPECT_THAT(full.err, HasSubstr("ended by context"));
}

}  // namespace
}  // namespace lockstep::black_box
