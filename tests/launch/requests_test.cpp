#include "launch/requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/check.h"

namespace lockstep::launch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Requests : public ::testing::Test {
 protected:
  Requests() {
    std::string name = (std::filesystem::temp_directory_path() / "lockstep-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    folder_ = name;
  }
  ~Requests() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::vector<Request> read(const std::string& file, const std::string& content,
                            uint64_t first_place = 0) const {
    std::ofstream(folder_ / file) << content;
    return read_requests(folder_ / file, defaults_, first_place);
  }
  Request read_one(const std::string& object) const { return read("p.jsonl", object).at(0); }

  // What is said of one object a line, the second of a file.
  std::string error(const std::string& object) const {
    try {
      const auto requests = read("p.jsonl", "{\"prompt\": \"a\"}\n" + object);
      resolve(requests.at(1), Tokenizer::bytes());
    } catch (const UsageError& e) {
      return std::string("usage: ") + e.what();
    } catch (const DataError& e) {
      return std::string("data: ") + e.what();
    }
    return "none";
  }

  std::filesystem::path folder_;
  RequestOptions defaults_;
};

TEST_F(Requests, OnePromptALine) {
  defaults_.sampling.top_k = 3;
  const auto requests = read("prompts.txt", "first\n\n{\"prompt\": \"x\"}\r\n last ", 5);
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(requests[0].prompt, "first");
  EXPECT_EQ(requests[1].prompt, "{\"prompt\": \"x\"}");
  EXPECT_EQ(requests[2].prompt, " last ");
  EXPECT_EQ(requests[2].stream_index, 7u);
  EXPECT_EQ(requests[2].options.sampling.top_k, 3);
}

TEST_F(Requests, JsonLinesMayHaveOptionsOfTheirOwn) {
  defaults_.sampling.greedy = true;
  defaults_.sampling.stop = {"end"};
  defaults_.forbid = {"1"};
  const auto requests = read("p.jsonl",
                             "{\"prompt\": \"a\\nb\"}\n"
                             "\n"
                             "{\"prompt\": \"c\", \"greedy\": false, \"top_k\": 9, "
                             "\"temperature\": 0.5, \"stop\": [\"x\", \"y z\"], \"max_tokens\": 4, "
                             "\"seed\": 18446744073709551615, \"no_repeat_ngram_size\": 2, "
                             "\"forbid\": [], \"logprobs\": 3}\n",
                             5);
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0].prompt, "a\nb");
  EXPECT_TRUE(requests[0].options.sampling.greedy);
  EXPECT_THAT(requests[0].options.sampling.stop, ElementsAre("end"));
  EXPECT_THAT(requests[0].options.forbid, ElementsAre("1"));
  EXPECT_EQ(requests[0].stream_index, 5u);
  const SamplingOptions& own = requests[1].options.sampling;
  EXPECT_FALSE(own.greedy);
  EXPECT_EQ(own.top_k, 9);
  EXPECT_EQ(own.temperature, 0.5);
  EXPECT_THAT(own.stop, ElementsAre("x", "y z"));
  EXPECT_EQ(own.max_tokens, 4);
  EXPECT_EQ(own.seed, UINT64_MAX);
  EXPECT_EQ(own.no_repeat_ngram_size, 2);
  EXPECT_EQ(own.logprobs, 3);
  EXPECT_TRUE(requests[1].options.forbid.empty());
  // A seed of its own: the place of the line no longer counts.
  EXPECT_EQ(requests[1].stream_index, 0u);
}

TEST_F(Requests, TokensByIdAndByText) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const SamplingOptions o =
      resolve(read_one(R"({"prompt": "", "forbid": [65, "B", "5", "\"" ], "forbid_first": " ",)"
                       R"("force_first": "<|endoftext|>", "logit_bias": {"7": -1, "\"8\"": 2.5}})"),
              tokenizer);
  EXPECT_THAT(o.forbid, ElementsAre(65, 'B', '5', '"'));
  EXPECT_THAT(o.forbid_first, ElementsAre(' '));
  EXPECT_THAT(o.force_first, ElementsAre(256));
  ASSERT_EQ(o.logit_bias.size(), 2u);
  for (const auto& [token, bias] : o.logit_bias) {
    EXPECT_EQ(bias, token == 7 ? -1 : 2.5);
    EXPECT_TRUE(token == 7 || token == '8');
  }

  // As they are typed.
  RequestOptions typed;
  OptionTable table("lockstep generate", "", "");
  add_request_options(table, typed);
  table.parse({"--forbid", "256", "--forbid", "\"7\"", "--forbid", "\"", "--logit-bias", "===-1.5",
               "--force-first", "a", "--force-first", "b", "--no-repeat-ngram-size", "3"});
  ASSERT_EQ(typed.logit_bias.size(), 1u);
  EXPECT_EQ(typed.logit_bias[0], std::pair(std::string("=="), -1.5));
  EXPECT_EQ(typed.sampling.no_repeat_ngram_size, 3);
  typed.logit_bias.clear();
  const SamplingOptions resolved = resolve({"", typed, 0, ""}, tokenizer);
  EXPECT_THAT(resolved.forbid, ElementsAre(256, '7', '"'));
  EXPECT_THAT(resolved.force_first, ElementsAre('a', 'b'));
}

TEST_F(Requests, ErrorsNameFileAndLine) {
  EXPECT_EQ(error(R"({"prompt": "a"})"), "none");
  for (const char* line : {"text", "[1]", "{\"prompt\": 1}", "{}", "{\"prompt\": \"a\""}) {
    EXPECT_THAT(error(line), AllOf(HasSubstr("data: "), HasSubstr("p.jsonl:2: an object with"),
                                   HasSubstr(line)));
  }
  const auto of = [&](const std::string& field) {
    return error(R"({"prompt": "a", )" + field + "}");
  };
  const auto says = [](const char* what) {
    return AllOf(HasSubstr("usage: "), HasSubstr("p.jsonl:2: "), HasSubstr(what));
  };
  EXPECT_THAT(of(R"("top_k": -1)"), says("--top-k is -1; it must be 0"));
  EXPECT_THAT(of(R"("max_tokens": 1.5)"), says("--max-tokens 1.5: a whole number"));
  EXPECT_THAT(of(R"("tempature": 1)"), says("did you mean --temperature?"));
  EXPECT_THAT(of(R"("checkpoint": "x")"), says("unknown option --checkpoint"));
  EXPECT_THAT(of(R"("greedy": 1)"), says("greedy: true or false is needed"));
  EXPECT_THAT(of(R"("greedy": true, "top_p": 0.5)"), says("--greedy contradicts --top-p 0.5"));
  EXPECT_THAT(of(R"("stop": [true])"), says("--stop true: a text is needed"));
  EXPECT_THAT(of(R"("stop": 5)"), says("--stop 5: a text is needed"));
  // Lists are for texts and tokens, whatever stands in them.
  EXPECT_THAT(of(R"("tempature": [])"), says("did you mean --temperature?"));
  for (const char* list : {"[]", "[5]", "[5, 6]"}) {
    EXPECT_THAT(of(fmt::format("\"top_k\": {}", list)), says(": a whole number is needed"));
    EXPECT_THAT(of(fmt::format("\"prompts\": {}", list)), says("unknown option --prompts"));
  }
  EXPECT_THAT(of(R"("early_stopping": [true])"), says("one of true, false, never is needed"));
  EXPECT_THAT(of(R"("logprobs": null)"), says("--logprobs null: a whole number"));
  for (const char* tokens :
       {"-1", "[-1]", "5.5", "[5.5]", "[5.0]", "true", "[65, null]", "[[5]]"}) {
    EXPECT_THAT(of(fmt::format("\"forbid\": {}", tokens)),
                says("a token, by its id (a whole number of at least 0) or text, is needed"));
  }
  EXPECT_THAT(of(R"("stop": "")"), says("--stop"));
  EXPECT_THAT(of(R"("logit_bias": [[1, 2]])"), says("logit_bias: an object"));
  EXPECT_THAT(of(R"("logit_bias": {"a": "b=3"})"), says("a number is needed"));
  EXPECT_THAT(of(R"("logit_bias": {"1": 1e9})"), says("from -1000000 to 1000000"));
  EXPECT_THAT(of(R"("forbid": "abc")"),
              says("--forbid 'abc': this is 3 tokens (97 'a', 98 'b', 99 'c'); one is needed"));
  EXPECT_THAT(of(R"("forbid": "abcdef")"), says("101 'e', ...)"));
  EXPECT_THAT(of(R"("forbid": 257)"), says("--forbid 257: there is no such token; this model's are "
                                           "0 to 256"));
  EXPECT_THAT(of(R"("forbid_first": "")"), says("a token is needed"));
  EXPECT_THAT(of(R"("forbid": "a", "force_first": 97)"),
              says("token 97 is given to --force-first"));
  EXPECT_THAT(of(R"("logit_bias": {"a": 1, "97": 2})"), says("token 97 is given twice"));
  try {
    read("p.jsonl", "\n\n");
    FAIL();
  } catch (const DataError& e) {
    EXPECT_THAT(e.what(), HasSubstr("holds no prompt"));
  }
}

// The table of options takes any number; what is out of range is refused all the same.
TEST_F(Requests, NumbersOutOfRange) {
  for (const char* field :
       {R"("max_tokens": 0)", R"("temperature": -0.1)", R"("top_k": -1)", R"("top_p": 1.1)",
        R"("min_p": -0.1)", R"("typical_p": 0)", R"("logprobs": -1)", R"("repetition_penalty": 0)",
        R"("presence_penalty": 2.1)", R"("frequency_penalty": -2.1)",
        R"("no_repeat_ngram_size": -1)", R"("logit_bias": {"a": 1e7})", R"("num_beams": 0)",
        R"("num_beams": 4, "length_penalty": 1e9)", R"("num_beams": 4, "diversity_penalty": -1)",
        R"("num_beams": 4, "num_return_sequences": 0)"}) {
    EXPECT_THAT(error(fmt::format("{{\"prompt\": \"a\", {}}}", field)),
                AllOf(HasSubstr("usage: "), HasSubstr("p.jsonl:2: "), HasSubstr("it must be")))
        << field;
  }
}

TEST_F(Requests, BiasesAsTyped) {
  const auto error = [](const char* text) -> std::string {
    RequestOptions o;
    OptionTable table("lockstep generate", "", "");
    add_request_options(table, o);
    try {
      table.parse({"--logit-bias", text});
    } catch (const UsageError& e) {
      return e.what();
    }
    return "none";
  };
  EXPECT_EQ(error("5=-1"), "none");
  EXPECT_EQ(error(" the=1e-3"), "none");
  EXPECT_THAT(error("5"), HasSubstr("--logit-bias 5: TOKEN=BIAS is needed"));
  EXPECT_THAT(error("=1"), HasSubstr("TOKEN=BIAS is needed"));
  EXPECT_THAT(error("5="), HasSubstr("a number is needed"));
  EXPECT_THAT(error("5=inf"), HasSubstr("a number is needed"));
}

}  // namespace
}  // namespace lockstep::launch
