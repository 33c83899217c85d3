#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "tests/launch/program/world.h"

// The options of generate that decide what is written, and what it reports.
namespace lockstep::black_box {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

World& world = World::get();

struct Sampling : testing::Test {
  static Result generate(const Arguments& more) {
    Arguments arguments{"generate", "--checkpoint", world.run(), "--precision", "fp32"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  // Of one prompt.
  static json object(const Arguments& more) {
    Arguments arguments{"--prompt", "The quick", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Result result = generate(arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    return json::parse(result.out);
  }
  static std::vector<int32_t> tokens(const Arguments& more) { return object(more).at("tokens"); }
};

TEST_F(Sampling, BansBiasesAndForcedTokens) {
  const Arguments greedy{"--greedy", "--max-tokens", "12"};
  const auto with = [&](Arguments more) {
    more.insert(more.begin(), greedy.begin(), greedy.end());
    return tokens(more);
  };
  const auto plain = with({});
  // The model has learned to go on with " brown": spaces, and each letter at its place.
  ASSERT_EQ(plain[0], ' ');
  EXPECT_NE(with({"--forbid-first", " "})[0], ' ');
  const auto spaceless = with({"--forbid", " "});
  EXPECT_EQ(std::count(spaceless.begin(), spaceless.end(), ' '), 0);
  EXPECT_EQ(with({"--forbid", "32"}), spaceless);
  EXPECT_EQ(with({"--logit-bias", " =-1000"}), spaceless);
  EXPECT_EQ(with({"--logit-bias", "x=1000"}), std::vector<int32_t>(12, 'x'));
  const auto forced = with({"--force-first", "Z", "--force-first", "90"});
  EXPECT_EQ(forced[0], 'Z');
  EXPECT_EQ(forced[1], 'Z');
  const auto once = with({"--no-repeat-ngram-size", "1"});
  EXPECT_EQ(std::set<int32_t>(once.begin(), once.end()).size(), once.size());
  for (const char c : std::string("The quick")) {
    EXPECT_EQ(std::count(once.begin(), once.end(), c), 0) << c;
  }
  EXPECT_EQ(object({"--force-first", "<|endoftext|>"}).at("finish_reason"), "end_of_text");
}

TEST_F(Sampling, FiltersThatLeaveOneTokenAreGreedy) {
  const auto greedy = tokens({"--greedy", "--max-tokens", "12"});
  for (const auto& [option, value] :
       {std::pair{"--top-p", "0"}, {"--min-p", "1"}, {"--top-k", "1"}, {"--temperature", "0"}}) {
    EXPECT_EQ(tokens({option, value, "--max-tokens", "12", "--seed", "5"}), greedy) << option;
  }
}

TEST_F(Sampling, Logprobs) {
  const json all = object({"--logprobs", "2", "--max-tokens", "3", "--temperature", "3"});
  ASSERT_EQ(all.at("logprobs").size(), 3u);
  for (size_t i = 0; i < 3; i++) {
    const json& place = all.at("logprobs")[i];
    EXPECT_EQ(place.at("token"), all.at("tokens")[i]);
    ASSERT_EQ(place.at("top").size(), 2u);
    const double best = place.at("top")[0].at("logprob");
    EXPECT_LE(place.at("logprob").get<double>(), best);
    EXPECT_GE(best, place.at("top")[1].at("logprob").get<double>());
    EXPECT_LT(best, 0);
    EXPECT_TRUE(place.at("text").is_string());
  }
  EXPECT_EQ(object({"--logprobs", "0", "--max-tokens", "1"}).at("logprobs")[0].at("top").size(),
            0u);
  EXPECT_EQ(object({"--logprobs", "9999", "--max-tokens", "1"}).at("logprobs")[0].at("top").size(),
            257u);
  EXPECT_FALSE(object({"--max-tokens", "1"}).contains("logprobs"));
}

// A seed of its own makes a request's text a function of the request alone.
TEST_F(Sampling, RequestsWithOptionsOfTheirOwn) {
  const auto file = world.write("requests.jsonl",
                                "{\"prompt\": \"The quick\", \"max_tokens\": 5}\n"
                                "{\"prompt\": \"The quick\", \"seed\": 3, \"temperature\": 2}\n"
                                "{\"prompt\": \"The quick\", \"seed\": 3, \"temperature\": 2}\n"
                                "{\"prompt\": \"The quick\", \"temperature\": 2}\n");
  const Result result = generate({"--prompt-file", file, "--json", "--max-tokens", "9"});
  ASSERT_EQ(result.code, 0) << result.err;
  std::vector<json> all;
  for (const std::string& line : lines_of(result.out)) all.push_back(json::parse(line));
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[0].at("tokens").size(), 5u);
  EXPECT_EQ(all[1].at("tokens").size(), 9u);
  EXPECT_EQ(all[2].at("tokens"), all[1].at("tokens"));
  EXPECT_NE(all[3].at("tokens"), all[1].at("tokens"));
  EXPECT_EQ(tokens({"--seed", "3", "--temperature", "2", "--max-tokens", "9"}),
            all[1].at("tokens").get<std::vector<int32_t>>());
}

// A token is a byte here.
TEST_F(Sampling, WritesCharactersOfSeveralTokens) {
  Arguments arguments{"--prompt", "x"};
  const std::string text = "é東🙂é東🙂";
  for (const char c : text) {
    arguments.insert(arguments.end(),
                     {"--force-first", std::to_string(static_cast<unsigned char>(c))});
  }
  arguments.insert(arguments.end(), {"--max-tokens", std::to_string(text.size())});
  EXPECT_EQ(generate(arguments).out, fmt::format("x{}\n", text));
  // Cut within the last character, what there is of it comes at the end.
  arguments.back() = std::to_string(text.size() - 1);
  EXPECT_EQ(generate(arguments).out, fmt::format("x{}\n", text.substr(0, text.size() - 1)));
}

TEST_F(Sampling, VerboseSaysWhereTheTimeWent) {
  const Arguments arguments{"--prompt", "The quick", "--greedy", "--max-tokens", "8"};
  Arguments verbose = arguments;
  verbose.emplace_back("--verbose");
  const Result plain = generate(arguments), told = generate(verbose);
  EXPECT_EQ(told.code, 0) << told.err;
  EXPECT_EQ(told.out, plain.out);
  // 2 layers of width 16, keys and values, 4 bytes each: 256 bytes for each of 9 + 8 - 1 tokens.
  for (const char* part :
       {"prompt       9 tokens in ", "first token  after ", "KV cache     4.0 KiB for 16 tokens",
        "then         7 tokens in ", " a token, ", " GB/s measured here"}) {
    EXPECT_THAT(told.err, HasSubstr(part));
    EXPECT_THAT(plain.err, Not(HasSubstr(part)));
  }
  verbose.emplace_back("--json");
  EXPECT_THAT(generate(verbose).err, HasSubstr("KV cache"));
}

TEST_F(Sampling, Contradictions) {
  const auto refused = [](const Arguments& more, const std::vector<std::string>& parts) {
    SCOPED_TRACE(testing::PrintToString(more));
    // Before anything is read: the checkpoint is not there.
    Arguments arguments{"generate", "--checkpoint", world.path("nowhere"), "--prompt", "a"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_error(run(arguments), 2, parts);
  };
  refused({"--greedy", "--temperature", "0.7"}, {"--greedy contradicts --temperature 0.7"});
  refused({"--top-k", "5", "--greedy"}, {"--greedy contradicts --top-k 5"});
  refused({"--logprobs", "2"}, {"--logprobs", "add --json"});
  refused({"--min-p", "2"}, {"--min-p is 2; it must be from 0"});
  refused({"--typical-p", "0"}, {"--typical-p is 0; it must be above 0 and at most 1"});
  refused({"--repetition-penalty", "0"}, {"--repetition-penalty is 0; it must be from"});
  refused({"--presence-penalty", "-3"}, {"--presence-penalty is -3; it must be from -2 to 2"});
  refused({"--frequency-penalty", "x"}, {"--frequency-penalty x: a number is needed"});
  refused({"--no-repeat-ngram-size", "-1"}, {"--no-repeat-ngram-size is -1; it must be 0"});
  refused({"--no-repeat-ngram-size"}, {"--no-repeat-ngram-size needs a value: N"});
  refused({"--no-repeat-ngram", "2"}, {"did you mean --no-repeat-ngram-size?"});
  refused({"--logit-bias", "a"}, {"--logit-bias a: TOKEN=BIAS is needed"});
  const auto file =
      world.write("logprobs.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"a\", \"logprobs\": 2}\n");
  expect_error(generate({"--prompt-file", file}), 2,
               {"logprobs.jsonl:2: --logprobs is part of the JSON output", "add --json"});
  EXPECT_EQ(generate({"--prompt-file", file, "--json"}).code, 0);
  // What only the model's tokenizer can tell.
  expect_error(generate({"--prompt", "a", "--forbid", "abc"}), 2, {"this is 3 tokens (97 'a'"});
  expect_error(generate({"--prompt", "a", "--logit-bias", "300=1"}), 2,
               {"--logit-bias 300: there is no such token; this model's are 0 to 256"});
  expect_error(generate({"--prompt", "a", "--forbid", "a", "--force-first", "97"}), 2,
               {"token 97 is given to --force-first and to --forbid"});
}

}  // namespace
}  // namespace lockstep::black_box
