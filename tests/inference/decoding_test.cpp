#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "inference/generator.h"
#include "tests/inference/golden.h"

// Whole generations with every option, against Hugging Face (tests/golden/inference/make.py).
namespace lockstep {
namespace {

using testing::Golden;
using testing::TemporaryFolder;

class DecodingOf : public ::testing::TestWithParam<const char*> {
 protected:
  TemporaryFolder folder_;
  Golden golden_{GetParam()};
  Generator generator_{golden_.checkpoint(folder_ / "run"), DType::fp32};
  nlohmann::json cases_ =
      nlohmann::json::parse(read_file(Golden::path("decoding.json"))).at(GetParam());
};

// Our logits are theirs within 1e-4, and a score that a penalty, a temperature of at least 0.5 or
// both have changed is wrong by at most 6e-4: probabilities by twice that, relatively. Borders lie
// further away (make.py).
TEST_P(DecodingOf, LeavesTheTokensThatHuggingFaceLeaves) {
  SamplingBuffers buffers;
  ASSERT_GT(cases_.at("filters").size(), 40u);
  for (const auto& golden : cases_.at("filters")) {
    SCOPED_TRACE(golden.at("options").dump() + " after " + golden.at("tokens").dump());
    std::vector<int32_t> tokens = golden.at("prompt");
    const size_t prompt_size = tokens.size();
    for (const int32_t token : golden.at("tokens")) tokens.push_back(token);
    const std::vector<float> logits = generator_.next_token_logits(tokens);
    const auto found = candidates(std::span(logits).first(257), {tokens, prompt_size},
                                  testing::sampling_options(golden.at("options")), buffers);
    std::vector<Candidate> kept(found.begin(), found.end());
    std::sort(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.token < b.token; });
    std::vector<int32_t> ids;
    for (const Candidate& candidate : kept) ids.push_back(candidate.token);
    ASSERT_EQ(ids, golden.at("ids").get<std::vector<int32_t>>());
    for (size_t i = 0; i < kept.size(); i++) {
      const double want = golden.at("probabilities")[i];
      EXPECT_NEAR(kept[i].probability, want, 1.2e-3 * want) << "token " << kept[i].token;
    }
  }
}

TEST_P(DecodingOf, ContinuesGreedilyAsHuggingFaceDoes) {
  ASSERT_GT(cases_.at("greedy").size(), 5u);
  for (const auto& golden : cases_.at("greedy")) {
    SamplingOptions options = testing::sampling_options(golden.at("options"));
    options.greedy = true;
    options.max_tokens = 20;
    const Completion completion = generator_.generate("the cat and the c", options, 0, nullptr);
    EXPECT_EQ(completion.tokens, golden.at("ids").get<std::vector<int32_t>>())
        << golden.at("options").dump();
  }
}

TEST_P(DecodingOf, ReportsTheModelsLogprobsWhateverTheOptions) {
  SamplingOptions options;
  options.greedy = true;
  options.max_tokens = 4;
  EXPECT_TRUE(generator_.generate(golden_.prompt(), options, 0, nullptr).logprobs.empty());
  options.logprobs = 5;
  // Options that leave the choice as it is, but neither the scores nor what is left.
  options.forbid = {9};
  options.repetition_penalty = 1.0001;
  const Completion completion = generator_.generate(golden_.prompt(), options, 0, nullptr);
  ASSERT_EQ(completion.logprobs.size(), 4u);
  for (size_t i = 0; i < 4; i++) {
    const auto& golden = cases_.at("logprobs")[i];
    const PlaceLogprobs& place = completion.logprobs[i];
    EXPECT_EQ(place.chosen.token, completion.tokens[i]);
    ASSERT_EQ(place.chosen.token, golden.at("token").get<int32_t>());
    EXPECT_NEAR(place.chosen.logprob, golden.at("logprob").get<double>(), 2e-4);
    ASSERT_EQ(place.top.size(), 5u);
    for (size_t n = 0; n < 5; n++) {
      EXPECT_EQ(place.top[n].token, golden.at("top")[n][0].get<int32_t>());
      EXPECT_NEAR(place.top[n].logprob, golden.at("top")[n][1].get<double>(), 2e-4);
    }
  }
}

TEST_P(DecodingOf, BeginsWithTheForcedTokens) {
  SamplingOptions options;
  options.max_tokens = 6;
  options.force_first = {'W', 'h', 'y'};
  const Completion forced = generator_.generate(golden_.prompt(), options, 0, nullptr);
  ASSERT_EQ(forced.tokens.size(), 6u);
  EXPECT_EQ(forced.text.substr(0, 3), "Why");
  // What follows is what follows that text: the same places, so the same random numbers.
  options.force_first.clear();
  options.max_tokens = 3;
  EXPECT_EQ(forced.text.substr(3),
            generator_.generate(golden_.prompt() + "Why", options, 0, nullptr).text);
}

TEST_P(DecodingOf, HandsOnWholeCharacters) {
  SamplingOptions options;
  for (const char c : std::string("aé東🙂")) {
    options.force_first.push_back(static_cast<unsigned char>(c));
  }
  std::vector<std::string> pieces;
  const auto on_text = [&](std::string_view piece) { pieces.emplace_back(piece); };
  for (options.max_tokens = 10; options.max_tokens >= 9; options.max_tokens--) {
    pieces.clear();
    generator_.generate(golden_.prompt(), options, 0, on_text);
    // Cut within the last character, what there is of it comes at the end.
    const std::string last = options.max_tokens == 10 ? "🙂" : "\xf0\x9f\x99";
    EXPECT_THAT(pieces, ::testing::ElementsAre("a", "é", "東", last));
  }
}

TEST_P(DecodingOf, EndsWhereItIsInterrupted) {
  SamplingOptions options;
  options.max_tokens = 20;
  const Completion whole = generator_.generate(golden_.prompt(), options, 0, nullptr);
  int asked = 0;
  const auto interrupted = [&] { return asked++ == 5; };
  const Completion part = generator_.generate(golden_.prompt(), options, 0, nullptr, interrupted);
  EXPECT_EQ(part.finish_reason, FinishReason::interrupted);
  EXPECT_EQ(name(part.finish_reason), "interrupted");
  EXPECT_THAT(part.tokens,
              ::testing::ElementsAreArray(whole.tokens.begin(), whole.tokens.begin() + 5));
}

TEST_P(DecodingOf, CountsWhatItReads) {
  SamplingOptions options;
  options.greedy = true;
  options.max_tokens = 8;
  const Completion completion = generator_.generate(golden_.prompt(), options, 0, nullptr);
  const GenerationStatistics& s = completion.statistics;
  const auto prompt = static_cast<int64_t>(golden_.prompt().size());
  const ModelConfig& c = golden_.config;
  const int64_t a_token = 2 * 4 * c.num_layers * c.num_kv_heads * c.head_dim;  // keys, values
  EXPECT_EQ(s.prompt_tokens, prompt);
  EXPECT_EQ(s.kv_cache_tokens, (prompt + 7 + 15) / 16 * 16);  // whole pages
  EXPECT_EQ(s.kv_cache_bytes, s.kv_cache_tokens * a_token);
  EXPECT_EQ(s.passes, 7);
  EXPECT_EQ(s.passes_tokens, 7);
  int64_t weights = ParameterTable(c).size();
  if (c.family == Family::gpt2) weights -= c.context_length * c.hidden_size;
  if (!c.tied_embeddings) weights -= c.vocab_size * c.hidden_size;
  int64_t bytes = 7 * 4 * weights;
  for (int64_t pass = 1; pass <= 7; pass++) bytes += (prompt + pass) * a_token;
  EXPECT_EQ(s.passes_bytes, bytes);
  EXPECT_GT(s.prompt_seconds, 0);
  EXPECT_GE(s.first_token_seconds, s.prompt_seconds);
  EXPECT_GT(s.passes_seconds, 0);
}

INSTANTIATE_TEST_SUITE_P(, DecodingOf, ::testing::Values("gpt2", "llama"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace lockstep
