#include "inference/beam_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/thread_pool.h"
#include "inference/batch.h"
#include "tests/inference/golden.h"

namespace lockstep {
namespace {

using testing::Golden;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

constexpr int32_t kEndOfText = 256;

SamplingOptions beam_options(const nlohmann::json& fields) {
  SamplingOptions o = testing::sampling_options(fields);
  BeamOptions& b = o.beams;
  b.num_beams = fields.at("num_beams");
  b.num_groups = fields.value("num_beam_groups", 1);
  b.diversity_penalty = fields.value("diversity_penalty", 0.0);
  b.length_penalty = fields.value("length_penalty", 1.0);
  b.num_return_sequences = fields.value("num_return_sequences", 1);
  if (fields.contains("early_stopping")) {
    const nlohmann::json& early = fields.at("early_stopping");
    b.early_stopping = early.is_string()   ? EarlyStopping::never
                       : early.get<bool>() ? EarlyStopping::yes
                                           : EarlyStopping::no;
  }
  o.max_tokens = 12;
  return o;
}

class BeamSearchOf : public ::testing::TestWithParam<const char*> {
 protected:
  BeamSearchOf() {
    const auto all = nlohmann::json::parse(read_file(Golden::path("beams.json"))).at(GetParam());
    for (const char* part : {"beams", "groups"}) {
      cases_.insert(cases_.end(), all.at(part).begin(), all.at(part).end());
    }
  }
  void TearDown() override { set_num_threads(1); }
  TemporaryFolder folder_;
  Golden golden_{GetParam()};
  Generator generator_{golden_.checkpoint(folder_ / "run"), DType::fp32};
  std::vector<nlohmann::json> cases_;  // plain and diverse
};

// Scores are sums of up to 12 log-probabilities, each right to 2e-4 (logits within 1e-4), changed
// by a penalty of at most 1.3, and divided by a length to a power of -1 at least: by 1/12.
TEST_P(BeamSearchOf, FindsWhatHuggingFaceFinds) {
  ASSERT_GT(cases_.size(), 80u);
  for (const auto& golden : cases_) {
    SCOPED_TRACE(golden.at("options").dump() + " after " + golden.at("prompt").dump());
    const Completion completion =
        generator_.generate(golden.at("prompt"), beam_options(golden.at("options")), 0, nullptr);
    const auto& want = golden.at("beams");
    ASSERT_EQ(completion.beams.size(), want.size());
    for (size_t n = 0; n < want.size(); n++) {
      const ScoredText& beam = completion.beams[n];
      std::vector<int32_t> ids = beam.tokens;
      if (beam.finish_reason == FinishReason::end_of_text) ids.push_back(kEndOfText);
      EXPECT_EQ(ids, want[n].at("ids").get<std::vector<int32_t>>()) << n;
      const double score = want[n].at("score");
      EXPECT_NEAR(beam.score, score, 12 * 2.6e-4 * (std::abs(score) > 40 ? 12 : 1)) << n;
    }
    EXPECT_EQ(completion.tokens, completion.beams.front().tokens);
    EXPECT_EQ(completion.text, completion.beams.front().text);
    EXPECT_EQ(completion.finish_reason, completion.beams.front().finish_reason);
  }
}

// Beams, beside requests of all kinds, have bits of their own too, and leave no page behind.
TEST_P(BeamSearchOf, RunsWithOthersAsAlone) {
  std::vector<GenerationRequest> requests;
  for (size_t i = 0; i < cases_.size(); i += 7) {
    const auto& golden = cases_[i];
    requests.push_back({golden.at("prompt"), beam_options(golden.at("options")), i});
    requests.push_back({golden.at("prompt").get<std::string>() + "at", {}, i});
    requests.back().options.max_tokens = 9;
  }
  std::vector<Completion> alone, together(requests.size());
  for (const GenerationRequest& r : requests) {
    alone.push_back(generator_.generate(r.prompt, r.options, r.stream_index, nullptr));
  }
  // Of 7 beams at most, of 18 + 11 tokens: a common page, and one each.
  const int64_t page = 16 * KvPages::bytes_a_token(golden_.config, DType::fp32);
  for (const int64_t pages : {8, 13, 100}) {
    set_num_threads(pages % 2 + 2);
    generator_.generate(requests, {6, pages * page},
                        [&](size_t i, Completion c) { together[i] = std::move(c); });
    for (size_t i = 0; i < requests.size(); i++) {
      EXPECT_EQ(together[i].tokens, alone[i].tokens) << i;
      ASSERT_EQ(together[i].beams.size(), alone[i].beams.size());
      for (size_t n = 0; n < alone[i].beams.size(); n++) {
        EXPECT_EQ(together[i].beams[n].tokens, alone[i].beams[n].tokens);
        EXPECT_EQ(together[i].beams[n].score, alone[i].beams[n].score);
      }
    }
  }
}

// Whole pages of the prompt are there once, whatever the number of beams.
TEST_P(BeamSearchOf, BeamsHoldPagesInCommon) {
  SamplingOptions options;
  options.max_tokens = 4;
  options.beams.num_beams = 6;
  const std::string prompt(33, 'a');  // two whole pages, and a token of the third
  const Completion completion = generator_.generate(prompt, options, 0, nullptr);
  EXPECT_LE(completion.statistics.kv_cache_tokens, (2 + 6) * 16);
  EXPECT_GT(completion.statistics.kv_cache_tokens, 3 * 16);
  const int64_t page = 16 * KvPages::bytes_a_token(golden_.config, DType::fp32);
  const GenerationRequest request{prompt, options, 0};
  const auto run = [&](int64_t pages) {
    generator_.generate(std::span(&request, 1), {1, pages * page},
                        [](size_t, const Completion&) {});
  };
  run(2 + 6);
  try {
    run(2 + 5);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("keys and values of 36 tokens in 6 beams need"));
  }
}

TEST_P(BeamSearchOf, EndsAtAStopText) {
  SamplingOptions options;
  options.max_tokens = 12;
  options.forbid = {kEndOfText};
  options.beams.num_beams = options.beams.num_return_sequences = 4;
  options.beams.length_penalty = 0;  // prefers what ends early
  const Completion free = generator_.generate(golden_.prompt(), options, 0, nullptr);
  options.stop = {free.text.substr(3, 2), "no such text"};
  std::string streamed;
  const Completion stopped = generator_.generate(
      golden_.prompt(), options, 0, [&](std::string_view piece) { streamed += piece; });
  EXPECT_EQ(streamed, stopped.text);
  int stops = 0;
  for (const ScoredText& beam : stopped.beams) {
    EXPECT_EQ(beam.text.find(options.stop[0]), std::string::npos);
    std::string bytes;
    for (const int32_t token : beam.tokens) bytes += static_cast<char>(token);
    const bool ends = bytes.ends_with(options.stop[0]);
    EXPECT_EQ(ends, beam.finish_reason == FinishReason::stop);
    EXPECT_EQ(bytes, ends ? beam.text + options.stop[0] : beam.text);
    stops += ends;
  }
  EXPECT_GT(stops, 0);
}

TEST_P(BeamSearchOf, GivesTheBestUntilNowWhenInterrupted) {
  SamplingOptions options;
  options.beams.num_beams = 3;
  int asked = 0;
  const Completion part =
      generator_.generate(golden_.prompt(), options, 0, nullptr, [&] { return asked++ == 5; });
  EXPECT_EQ(part.finish_reason, FinishReason::interrupted);
  EXPECT_EQ(part.tokens.size(), 5u);
}

INSTANTIATE_TEST_SUITE_P(, BeamSearchOf, ::testing::Values("gpt2", "llama"),
                         [](const auto& param) { return std::string(param.param); });

// With as many beams as there are texts, it finds the best of them: a chain of three tokens whose
// likeliest first token leads nowhere good.
TEST(BeamSearch, FindsTheBestOfAllTexts) {
  SamplingOptions options;
  options.beams.num_beams = options.beams.num_return_sequences = 16;
  options.beams.length_penalty = 0;
  options.beams.early_stopping = EarlyStopping::never;
  const auto logits_after = [](const std::vector<int32_t>& tokens) {
    std::vector<float> logits{1.1f, 1.0f, 0.2f};
    if (!tokens.empty() && tokens.back() == 0) logits = {0, 0, 0};
    if (!tokens.empty() && tokens.back() == 1) logits = {0, 3, 0};
    return logits;
  };
  const std::vector<int32_t> prompt{2};
  BeamSearch search(options, prompt, 3, [](const Beam&, int32_t) { return false; });
  while (!search.beams().empty()) {
    std::vector<float> logits;
    for (const Beam& beam : search.beams()) {
      for (const float logit : logits_after(beam.tokens)) logits.push_back(logit);
    }
    search.step(logits, 3);
  }
  const std::vector<EndedBeam> best = search.best();
  ASSERT_EQ(best.size(), 16u);
  EXPECT_THAT(best[0].tokens, ::testing::ElementsAre(1, 1, 1));
  double log_sum_first = std::log(std::exp(1.1) + std::exp(1.0) + std::exp(0.2));
  EXPECT_NEAR(best[0].score, 1.0 - log_sum_first + 2 * (3 - std::log(2 + std::exp(3.0))), 1e-6);
  for (size_t n = 1; n < best.size(); n++) EXPECT_LE(best[n].score, best[n - 1].score);
}

// At the strongest length penalties of both signs.
TEST(BeamSearch, ScoresOfLongTextsAreNumbers) {
  for (const double length_penalty : {-40.0, 40.0}) {
    SamplingOptions options;
    options.beams.num_beams = options.beams.num_return_sequences = 2;
    options.beams.length_penalty = length_penalty;
    validate(options);
    const std::vector<int32_t> prompt{2};
    BeamSearch search(options, prompt, 1500, [](const Beam&, int32_t) { return false; });
    while (!search.beams().empty()) {
      std::vector<float> logits;
      for (size_t n = 0; n < search.beams().size(); n++) logits.insert(logits.end(), {0, 1, 2});
      search.step(logits, 3);
    }
    const std::vector<EndedBeam> best = search.best();
    ASSERT_EQ(best.size(), 2u);
    EXPECT_TRUE(std::isfinite(best[0].score)) << best[0].score;
    EXPECT_LT(best[0].score, 0);
    EXPECT_LT(best[1].score, best[0].score);
  }
}

TEST(BeamOptions, RefusesWhatDoesNotFitTogether) {
  const auto refused = [](const std::function<void(SamplingOptions&)>& change, const char* part) {
    SamplingOptions options;
    options.beams.num_beams = 4;
    change(options);
    try {
      validate(options);
      FAIL() << part;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  };
  using O = SamplingOptions&;
  refused([](O o) { o.beams.num_beams = 0; }, "--num-beams is 0");
  refused([](O o) { o.beams.num_return_sequences = 5; }, "from 1 to --num-beams, 4");
  refused([](O o) { o.beams.num_groups = 3; }, "--num-beam-groups 3 does not divide");
  refused([](O o) { o.beams.num_groups = 2; }, "need each other");
  refused([](O o) { o.beams.diversity_penalty = 1; }, "need each other");
  refused([](O o) { o.beams.diversity_penalty = -1; }, "--diversity-penalty is -1");
  refused([](O o) { o.beams.length_penalty = NAN; }, "--length-penalty is nan");
  refused([](O o) { o.beams.length_penalty = 40.5; }, "--length-penalty is 40.5");
  refused([](O o) { o.beams.length_penalty = -40.5; }, "it must be from -40 to 40");
  refused([](O o) { o.greedy = true; }, "--num-beams contradicts --greedy");
  refused([](O o) { o.temperature = 0.5; }, "--num-beams contradicts --temperature");
  refused([](O o) { o.top_k = 5; }, "--num-beams contradicts --top-k");
  refused([](O o) { o.top_p = 0.5; }, "--num-beams contradicts --top-p");
  refused([](O o) { o.min_p = 0.5; }, "--num-beams contradicts --min-p");
  refused([](O o) { o.typical_p = 0.5; }, "--num-beams contradicts --typical-p");
  refused([](O o) { o.logprobs = 1; }, "--logprobs is of one text");
  const auto alone = [&](const std::function<void(BeamOptions&)>& change, const char* part) {
    refused(
        [&](O o) {
          o.beams.num_beams = 1;
          change(o.beams);
        },
        part);
  };
  alone([](BeamOptions& b) { b.num_return_sequences = 2; }, "--num-return-sequences needs");
  alone([](BeamOptions& b) { b.num_groups = 2; }, "--num-beam-groups needs");
  alone([](BeamOptions& b) { b.length_penalty = 2; }, "--length-penalty needs");
  alone([](BeamOptions& b) { b.early_stopping = EarlyStopping::yes; }, "--early-stopping needs");
  alone([](BeamOptions& b) { b.diversity_penalty = 2; }, "--diversity-penalty needs");
}

}  // namespace
}  // namespace lockstep
