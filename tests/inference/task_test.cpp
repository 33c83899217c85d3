#include "inference/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "core/check.h"
#include "tests/inference/golden.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::Golden;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

std::vector<int32_t> bytes(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

// All work is this worker's.
class Alone : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce(double*, int64_t, ReduceOp) override {}
  void all_reduce(const Tensor&, ReduceOp, Stream&) override {}
  void all_gather(const Tensor&, Stream&) override {}
  void reduce_scatter(const Tensor&, const Tensor&, Stream&) override { unused(); }
  void all_to_all(const Tensor&, const Tensor&, Stream&) override { unused(); }
  void broadcast(const Tensor&, int, Stream&) override {}
  void broadcast(std::string&, int) override {}
  std::vector<std::string> gather(const std::string& text) override { return {text}; }
  void barrier() override {}
  std::unique_ptr<Communicator> duplicate() override { unused(); }
  void set_purpose(const std::string&) override {}
  void set_deadline(double) override {}
  void cancel() override { unused(); }

 private:
  [[noreturn]] static void unused() { throw std::logic_error("a task does not need this"); }
};

class TaskOf : public ::testing::TestWithParam<const char*> {
 protected:
  Task read(const std::string& content) const {
    std::ofstream(folder_ / "task.jsonl") << content;
    return read_task(folder_ / "task.jsonl");
  }
  TaskResult run(const std::string& content, int64_t resamples = 0) {
    Alone alone;
    return score(generator_, read(content), alone, resamples);
  }
  double logprob(const std::string& context, const std::string& continuation) {
    const std::vector<std::vector<int32_t>> one = {bytes(continuation)};
    return generator_.score(bytes(context), one)[0].logprob;
  }

  TemporaryFolder folder_;
  Golden golden_{GetParam()};
  Generator generator_{golden_.checkpoint(folder_ / "run"), DType::fp32};
};

// Logits are theirs within 1e-4, so the sum over n tokens within 2e-4 n.
TEST_P(TaskOf, LogprobsAreThoseOfHuggingFace) {
  const auto golden =
      nlohmann::json::parse(read_file(Golden::path("decoding.json"))).at(GetParam()).at("scores");
  ASSERT_EQ(golden.size(), 9u);
  int likeliest = 0;
  for (const auto& pair : golden) {
    const std::vector<int32_t> context = pair.at("context"), continuation = pair.at("continuation");
    // Beside others, of other lengths, with the same context.
    const std::vector<std::vector<int32_t>> all = {bytes("a"), continuation, bytes("other"),
                                                   continuation};
    const auto scores = generator_.score(context, all);
    ASSERT_EQ(scores.size(), 4u);
    EXPECT_NEAR(scores[1].logprob, pair.at("logprob").get<double>(),
                2e-4 * static_cast<double>(continuation.size()));
    EXPECT_EQ(scores[1].likeliest, pair.at("likeliest").get<bool>());
    EXPECT_EQ(scores[3].logprob, scores[1].logprob);
    const std::vector<std::vector<int32_t>> one = {continuation};
    EXPECT_EQ(generator_.score(context, one)[0].logprob, scores[1].logprob);
    likeliest += scores[1].likeliest;
  }
  EXPECT_GE(likeliest, 1);
}

TEST_P(TaskOf, AllTokensMustBeTheLikeliest) {
  const auto likeliest_after = [&](std::vector<int32_t> tokens) {
    const auto logits = generator_.next_token_logits(tokens);
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  };
  const int32_t first = likeliest_after({'Q', ':'}), other = first == 'X' ? 'Y' : 'X';
  const std::vector<std::vector<int32_t>> continuations = {
      {first, likeliest_after({'Q', ':', first})},
      {other, likeliest_after({'Q', ':', other})},
      {first, likeliest_after({'Q', ':', first}) ^ 1}};
  const auto scores = generator_.score(bytes("Q:"), continuations);
  EXPECT_TRUE(scores[0].likeliest);
  EXPECT_FALSE(scores[1].likeliest);
  EXPECT_FALSE(scores[2].likeliest);
}

// Two questions whose choices the model itself ranks, once by the sum and once by the sum over the
// length: what is right by one rule may be wrong by the other.
TEST_P(TaskOf, MultipleChoiceByTheSumAndByTheSumOverTheLength) {
  const std::string shorter = "é!", longer = "é! and so on";
  const double a = logprob("Q:", " " + shorter), b = logprob("Q:", " " + longer);
  ASSERT_GT(a, b);           // more tokens are less likely
  ASSERT_LT(a / 2, b / 12);  // but likelier for their 12 characters, two of them a byte each
  const std::string question = R"({"context": "Q:", "choices": ["é!", "é! and so on"], "answer": )";
  TaskResult result = run(question + "0}\n\n" + question + "\"é!\"}\n" + question + "1}\n");
  EXPECT_EQ(result.items, 3);
  EXPECT_DOUBLE_EQ(result.accuracy.value, 2.0 / 3);
  ASSERT_TRUE(result.accuracy_norm);
  EXPECT_DOUBLE_EQ(result.accuracy_norm->value, 1.0 / 3);
  EXPECT_FALSE(result.accuracy.interval);
  EXPECT_FALSE(result.perplexity);
}

TEST_P(TaskOf, LastWord) {
  const double word = logprob("It was", " over"), other = logprob("It was the", " end");
  const TaskResult result =
      run("{\"text\": \"It was over\"}\n{\"text\": \"It was the end\"}\n", 200);
  EXPECT_EQ(result.kind, TaskKind::last_word);
  EXPECT_EQ(result.accuracy.value, 0);
  ASSERT_TRUE(result.perplexity);
  EXPECT_DOUBLE_EQ(result.perplexity->value, std::exp(-(word + other) / 2));
  ASSERT_TRUE(result.perplexity->interval);
  EXPECT_LE(result.perplexity->interval->low, result.perplexity->value);
  EXPECT_GE(result.perplexity->interval->high, result.perplexity->value);
  const auto json = to_json(result);
  EXPECT_EQ(json.at("kind"), "last_word");
  EXPECT_EQ(json.at("perplexity_interval").size(), 2u);
}

TEST_P(TaskOf, LastWordIsRightWhenGreedyDecodingWritesIt) {
  SamplingOptions options;
  options.greedy = true;
  options.max_tokens = 3;
  const std::string word = generator_.generate("In the", options, 0, nullptr).text;
  // Random weights write bytes that JSON cannot hold.
  TaskItem right;
  right.context = "In the";
  right.continuations = {word};
  TaskItem wrong = right;
  wrong.continuations = {word.substr(0, 2) + (word.back() == 'X' ? "Y" : "X")};
  Alone alone;
  EXPECT_EQ(score(generator_, {TaskKind::last_word, {right}}, alone, 0).accuracy.value, 1);
  EXPECT_EQ(score(generator_, {TaskKind::last_word, {right, wrong}}, alone, 0).accuracy.value, 0.5);
}

TEST_P(TaskOf, ExactMatch) {
  SamplingOptions options;
  options.greedy = true;
  options.max_tokens = 6;
  const std::string text = generator_.generate("In the", options, 0, nullptr).text;
  const std::string item =
      R"({"context": "In the", "answer": "x", "max_tokens": 6, "stop": ["zzz"]})";
  Task task = read(item + "\n" + item + "\n");
  // Random weights write bytes that JSON cannot hold.
  task.items[0].expected = "  " + text + "\n";
  Alone alone;
  EXPECT_EQ(score(generator_, task, alone, 0).accuracy.value, 0.5);
  EXPECT_EQ(task.items[1].generation.max_tokens, 6);
  EXPECT_THAT(task.items[1].generation.stop, ElementsAre("zzz"));
  const Task defaults = read(R"({"context": "a", "answer": "b"})");
  EXPECT_EQ(defaults.items[0].generation.max_tokens, 32);
  EXPECT_THAT(defaults.items[0].generation.stop, ElementsAre("\n"));
}

// As lm-eval: of a context its last context_length - max_tokens tokens.
TEST_P(TaskOf, ExactMatchKeepsTheEndOfALongContext) {
  const int64_t context_length = golden_.config.context_length;
  SamplingOptions options;
  options.greedy = true;
  options.max_tokens = 6;
  const std::string end = (golden_.prompt() + std::string(48, 'x')).substr(0, context_length - 6);
  const Completion want = generator_.generate(end, options, 0, nullptr);
  ASSERT_EQ(want.tokens.size(), 6u);
  Task task = read(R"({"context": "", "answer": "", "max_tokens": 6, "stop": ["zzz"]})");
  task.items[0].expected = want.text;
  Alone alone;
  for (const size_t before : {0, 1, 5, 6, 7, 100}) {
    task.items[0].context = std::string(before, 'Q') + end;
    EXPECT_EQ(score(generator_, task, alone, 0).accuracy.value, 1) << before;
  }
}

TEST_P(TaskOf, RefusesTokensThatLeaveNoRoomForAContext) {
  const auto item = [](int64_t max_tokens) {
    return fmt::format(R"({{"context": "a", "answer": "b", "max_tokens": {}}})", max_tokens) + "\n";
  };
  const int64_t context_length = golden_.config.context_length;
  EXPECT_NO_THROW(run(item(context_length - 1)));
  try {
    run(item(3) + item(context_length));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::data);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("task.jsonl:2: \"max_tokens\" is 48"),
                                    HasSubstr("less than the model's context of 48")));
  }
}

TEST_P(TaskOf, WhatDoesNotFitTheModelNamesTheLine) {
  const std::string word(static_cast<size_t>(golden_.config.context_length), 'a');
  EXPECT_NO_THROW(run("{\"text\": \"x " + word.substr(1) + "\"}"));
  try {
    run("{\"text\": \"x y\"}\n{\"text\": \"x " + word + "\"}\n");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::data);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("task.jsonl:2: "), HasSubstr("49 tokens")));
  }
}

INSTANTIATE_TEST_SUITE_P(, TaskOf, ::testing::Values("gpt2", "llama"),
                         [](const auto& param) { return std::string(param.param); });

TEST(ReadTask, ChoicesFollowADelimiterThatTheirLengthLeavesOut) {
  TemporaryFolder folder;
  std::ofstream(folder / "t.jsonl")
      << R"({"context": "a", "choices": ["é!", "bcd"], "answer": "bcd"})"
      << "\n"
      << R"({"context": "a", "choices": ["é!", "bcd"], "answer": 0, "delimiter": "--"})";
  const Task task = read_task(folder / "t.jsonl");
  ASSERT_EQ(task.items.size(), 2u);
  EXPECT_THAT(task.items[0].continuations, ElementsAre(" é!", " bcd"));
  EXPECT_THAT(task.items[1].continuations, ElementsAre("--é!", "--bcd"));
  for (const TaskItem& item : task.items) EXPECT_THAT(item.lengths, ElementsAre(2, 3));
  EXPECT_EQ(task.items[0].answer, 1u);
  EXPECT_EQ(task.items[1].answer, 0u);
}

TEST(ReadTask, ErrorsNameLineAndField) {
  TemporaryFolder folder;
  const auto error = [&](const std::string& line) -> std::string {
    std::ofstream(folder / "t.jsonl") << R"({"context": "a", "choices": ["b", "c"], "answer": 1})"
                                      << "\n\n"
                                      << line << "\n";
    try {
      read_task(folder / "t.jsonl");
    } catch (const DataError& e) {
      return e.what();
    }
    return "none";
  };
  const auto choice = [&](const std::string& fields) {
    return error(R"({"context": "a", "choices": ["b", "c"], )" + fields + "}");
  };
  EXPECT_EQ(choice(R"("answer": "c")"), "none");
  EXPECT_EQ(choice(R"("answer": 0, "delimiter": "")"), "none");
  for (const char* wrong : {R"("answer": 2)", R"("answer": -1)", R"("answer": "d")",
                            R"("answer": 0.5)", R"("answer": true)"}) {
    EXPECT_THAT(choice(wrong), AllOf(HasSubstr("t.jsonl:3: \"answer\": one of the choices"),
                                     HasSubstr("from 0 to 1")));
  }
  EXPECT_THAT(choice(R"("ansver": 1)"), HasSubstr("t.jsonl:3: unknown field \"ansver\""));
  EXPECT_THAT(choice(R"("delimiter": "x")"), HasSubstr("t.jsonl:3: \"answer\" is missing"));
  EXPECT_THAT(choice(R"("answer": 1, "delimiter": 1)"), HasSubstr("\"delimiter\": a text"));
  EXPECT_THAT(error("nonsense"), HasSubstr("t.jsonl:3: a JSON object is needed"));
  EXPECT_THAT(error("{}"), HasSubstr("t.jsonl:3: \"choices\""));
  EXPECT_THAT(error(R"({"context": 1, "choices": ["a"], "answer": 0})"),
              HasSubstr("\"context\": a text is needed, found 1"));
  EXPECT_THAT(error(R"({"context": "", "choices": ["a", ""], "answer": 0})"),
              HasSubstr("\"choices\": a list of texts that are not empty"));
  EXPECT_THAT(error(R"({"context": "", "choices": [], "answer": 0})"), HasSubstr("\"choices\""));
  EXPECT_THAT(error(R"({"text": "two words"})"), HasSubstr("kind last_word, the lines before"));
  std::ofstream(folder / "t.jsonl") << "{\"text\": \"word\"}\n";
  EXPECT_THROW(read_task(folder / "t.jsonl"), DataError);
  std::ofstream(folder / "t.jsonl") << "{\"text\": \"ends in a space \"}\n";
  EXPECT_THROW(read_task(folder / "t.jsonl"), DataError);
  std::ofstream(folder / "t.jsonl") << R"({"context": "", "answer": "", "max_tokens": 0})";
  EXPECT_THROW(read_task(folder / "t.jsonl"), DataError);
  std::ofstream(folder / "t.jsonl") << "\n";
  EXPECT_THROW(read_task(folder / "t.jsonl"), DataError);
}

// Merges cross the border of context and continuation as they would in the whole text.
TEST(EncodePair, SplitsTheTokensOfTheWholeText) {
  const auto id = [](const Tokenizer& tokenizer, const std::string& text) {
    const auto ids = tokenizer.encode(text);
    CHECK(ids.size() == 1);
    return ids[0];
  };
  const Tokenizer plain = Tokenizer::from_merges({"<|endoftext|>"}, {});
  const auto byte = [&](char c) { return id(plain, std::string(1, c)); };
  const Tokenizer tokenizer =
      Tokenizer::from_merges({"<|endoftext|>"}, {{byte(' '), byte('a')}, {byte('b'), byte('c')}});
  const int32_t space_a = id(tokenizer, " a"), bc = id(tokenizer, "bc");
  using Pair = std::pair<std::vector<int32_t>, std::vector<int32_t>>;
  EXPECT_EQ(encode_pair(tokenizer, "b", " a"), Pair({byte('b')}, {space_a}));
  // The space goes over, and merges with the word.
  EXPECT_EQ(encode_pair(tokenizer, "b ", "a"), Pair({byte('b')}, {space_a}));
  // "bc" is one token, and as many as the context alone has: the continuation has what is left.
  EXPECT_EQ(encode_pair(tokenizer, "b", "c a"), Pair({byte('b')}, {space_a}));
  EXPECT_EQ(encode_pair(tokenizer, "", "bc"), Pair({0}, {bc}));
  EXPECT_EQ(encode_pair(tokenizer, " ", "a"), Pair({0}, {space_a}));
  EXPECT_EQ(encode_pair(Tokenizer::bytes(), "a<|endoftext|>", "b"), Pair({'a', 256}, {'b'}));
}

}  // namespace
}  // namespace lockstep
