#include "inference/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/inference/golden.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Golden;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

constexpr int32_t kEndOfText = 256;

SamplingOptions greedy(int64_t max_tokens) {
  SamplingOptions options;
  options.greedy = true;
  options.max_tokens = max_tokens;
  return options;
}

class GeneratorOf : public ::testing::TestWithParam<const char*> {
 protected:
  TemporaryFolder folder_;
  Golden golden_{GetParam()};
  Generator generator_{golden_.checkpoint(folder_ / "run"), DType::fp32};

  Completion complete(const std::string& prompt, const SamplingOptions& options,
                      uint64_t stream_index = 0) {
    std::string streamed;
    const Completion completion = generator_.generate(
        prompt, options, stream_index, [&](std::string_view piece) { streamed += piece; });
    EXPECT_EQ(streamed, completion.text);
    return completion;
  }
  int64_t context() const { return golden_.config.context_length; }
};

// The project's bound for a published model's logits (1e-4); theirs and ours are sums in fp32 of a
// few hundred terms of size one.
TEST_P(GeneratorOf, GivesTheLogitsOfHuggingFace) {
  std::vector<int32_t> tokens = golden_.prompt_tokens();
  const auto compare = [&](const std::vector<float>& want) {
    const std::vector<float> logits = generator_.next_token_logits(tokens);
    ASSERT_EQ(logits.size(), want.size());
    for (size_t v = 0; v < want.size(); v++) EXPECT_NEAR(logits[v], want[v], 1e-4) << v;
  };
  compare(golden_.logits_first);
  const auto added = golden_.greedy();
  tokens.insert(tokens.end(), added.begin(), added.end() - 1);
  ASSERT_EQ(static_cast<int64_t>(tokens.size()), context());
  compare(golden_.logits_last);
}

TEST_P(GeneratorOf, ContinuesAsHuggingFaceDoesUpToTheFullContext) {
  const Completion completion = complete(golden_.prompt(), greedy(1000));
  EXPECT_EQ(completion.tokens, golden_.greedy());
  EXPECT_EQ(completion.finish_reason, FinishReason::context);
  EXPECT_EQ(name(completion.finish_reason), "context");
  std::string text;
  for (const int32_t id : golden_.greedy()) text += static_cast<char>(id);
  EXPECT_EQ(completion.text, text);

  const Completion fewer = complete(golden_.prompt(), greedy(7));
  EXPECT_EQ(fewer.text, text.substr(0, 7));
  EXPECT_EQ(fewer.finish_reason, FinishReason::length);
}

// The definition: every token from a whole forward pass of its own. Logits of one token at a time
// differ from those by rounding, 1e-5; that a draw lies so close to a border has a chance of 1e-5 a
// token.
TEST_P(GeneratorOf, SamplesAsWithoutACache) {
  SamplingOptions options;
  options.max_tokens = 20;
  options.temperature = 1.5;
  options.top_k = 60;
  options.top_p = 0.95;
  SamplingBuffers buffers;
  for (const uint64_t stream : {0u, 1u}) {
    options.seed = 14;
    std::vector<int32_t> tokens = golden_.prompt_tokens();
    const size_t prompt_size = tokens.size();
    for (int i = 0; i < 20; i++) {
      const std::vector<float> logits = generator_.next_token_logits(tokens);
      const auto known = std::span(logits).first(257);
      tokens.push_back(sample(known, {tokens, prompt_size}, options, stream, buffers));
      ASSERT_NE(tokens.back(), kEndOfText) << "choose another seed";
    }
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<int64_t>(prompt_size));
    EXPECT_EQ(complete(golden_.prompt(), options, stream).tokens, tokens);
  }
}

TEST_P(GeneratorOf, ChoosesOnlyTokensThatTheTokenizerHas) {
  SamplingOptions options;
  options.temperature = 1e6;  // all as likely
  options.max_tokens = 30;
  for (options.seed = 0; options.seed < 100; options.seed++) {
    for (const int32_t token : complete("x", options).tokens) EXPECT_LT(token, 257);
  }
}

TEST_P(GeneratorOf, EndsAtEndOfText) {
  SamplingOptions options;
  options.temperature = 1e6;
  options.max_tokens = 40;
  int ended = 0;
  for (options.seed = 0; options.seed < 60; options.seed++) {
    const Completion completion = complete("x", options);
    EXPECT_EQ(std::count(completion.tokens.begin(), completion.tokens.end(), kEndOfText), 0);
    EXPECT_EQ(completion.tokens.size() < 40, completion.finish_reason == FinishReason::end_of_text);
    ended += completion.finish_reason == FinishReason::end_of_text;
  }
  EXPECT_GT(ended, 0);  // 9 are expected
}

TEST_P(GeneratorOf, EndsBeforeAStopText) {
  const Completion whole = complete(golden_.prompt(), greedy(20));
  SamplingOptions options = greedy(20);
  options.stop = {"no such text", whole.text.substr(9, 3)};
  const size_t end = whole.text.find(options.stop[1]);
  const Completion stopped = complete(golden_.prompt(), options);
  EXPECT_EQ(stopped.text, whole.text.substr(0, end));
  EXPECT_EQ(stopped.finish_reason, FinishReason::stop);
  EXPECT_EQ(stopped.tokens.size(), end + 3);
}

TEST_P(GeneratorOf, BeginsADocumentWhenThePromptIsEmpty) {
  const std::vector<int32_t> end_of_text = {kEndOfText};
  const auto logits = generator_.next_token_logits(end_of_text);
  const Completion completion = complete("", greedy(1));
  ASSERT_EQ(completion.tokens.size(), 1u);
  EXPECT_EQ(completion.tokens[0],
            std::max_element(logits.begin(), logits.begin() + 257) - logits.begin());
}

TEST_P(GeneratorOf, RefusesAPromptBeyondTheContext) {
  const auto size = static_cast<size_t>(context());
  const Completion full = complete(std::string(size, 'a'), greedy(5));
  EXPECT_EQ(full.tokens.size(), 1u);
  EXPECT_EQ(full.finish_reason, FinishReason::context);
  try {
    complete(std::string(size + 1, 'a'), greedy(5));
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(std::to_string(size + 1) + " tokens"),
                                    HasSubstr("context holds " + std::to_string(size))));
  }
}

INSTANTIATE_TEST_SUITE_P(, GeneratorOf, ::testing::Values("gpt2", "llama"),
                         [](const auto& param) { return std::string(param.param); });

TEST(Generator, ReportsDamagedWeights) {
  TemporaryFolder folder;
  Golden golden("gpt2");
  golden.weights.back() = std::nanf("");
  Generator generator(golden.checkpoint(folder / "run"), DType::fp32);
  try {
    generator.generate("a", {}, 0, nullptr);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("is nan"));
  }
  const std::vector<int32_t> context = {'a'};
  const std::vector<std::vector<int32_t>> continuations = {{'b'}};
  EXPECT_THROW(generator.score(context, continuations), DataError);
}

TEST(Generator, RefusesATokenizerLargerThanTheModel) {
  TemporaryFolder folder;
  Golden golden("llama");
  golden.config.vocab_size = 256;
  golden.weights.resize(static_cast<size_t>(ParameterTable(golden.config).size()));
  try {
    Generator(golden.checkpoint(folder / "run"), DType::fp32);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("the tokenizer has 257 tokens, the model 256"));
  }
}

// bf16 rounds weights and activations to 8 bits: logits of size 5 agree within a few per cent.
TEST(Generator, WorksInBf16) {
  TemporaryFolder folder;
  Golden golden("llama");
  Generator generator(golden.checkpoint(folder / "run"), DType::bf16);
  const auto logits = generator.next_token_logits(golden.prompt_tokens());
  for (size_t v = 0; v < logits.size(); v++) EXPECT_NEAR(logits[v], golden.logits_first[v], 0.3);
}

}  // namespace
}  // namespace lockstep
