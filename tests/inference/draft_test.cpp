#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/thread_pool.h"
#include "inference/batch.h"
#include "inference/generator.h"
#include "model/kv_pages.h"
#include "tests/inference/chi_square.h"
#include "tests/inference/golden.h"

// Generation with a draft against generation without.
namespace lockstep {
namespace {

using testing::Golden;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::with_context;

constexpr int64_t kContext = 1040;

// Nearly the same model: each weight is off by up to this share of itself.
Golden disturbed(Golden golden, float share) {
  std::mt19937 random(5);
  for (float& weight : golden.weights) {
    weight *= 1 + share * (static_cast<float>(random() % 2001) / 1000 - 1);
  }
  return golden;
}

class DraftOf : public ::testing::TestWithParam<const char*> {
 protected:
  void TearDown() override { set_num_threads(1); }

  // What drafts: "itself", a model that is "near" or "far", one of a "short" context, or "lookup".
  Generator& with(const std::string& kind) {
    if (kind == "lookup") {
      generator_.draft_by_prompt_lookup();
    } else {
      const float share = kind == "itself" ? 0 : kind == "far" ? 3 : 0.3F;
      const int64_t context = kind == "short" ? 100 : kContext;
      Golden draft = disturbed(with_context(Golden{GetParam()}, context), share);
      generator_.draft_with(draft.checkpoint(folder_ / kind));
    }
    return generator_;
  }

  std::vector<Completion> run(std::span<const GenerationRequest> requests,
                              const BatchLimits& limits = {}) {
    std::vector<Completion> all(requests.size());
    generator_.generate(requests, limits,
                        [&](size_t i, Completion completion) { all[i] = std::move(completion); });
    return all;
  }

  TemporaryFolder folder_;
  Golden golden_ = with_context(Golden{GetParam()}, kContext);
  Generator generator_{golden_.checkpoint(folder_ / "run"), DType::fp32};
};

// Every bit that a completion shows.
std::string described(const Completion& c) {
  std::string text = fmt::format("{} '{}' {}", c.tokens, c.text, name(c.finish_reason));
  for (const PlaceLogprobs& place : c.logprobs) {
    text += fmt::format(" {}", place.chosen.logprob);
    for (const TokenLogprob& token : place.top) text += fmt::format(" {}", token.logprob);
  }
  return text;
}

TEST_P(DraftOf, GreedyIsTheModelsOwnTextToTheBit) {
  GenerationRequest plain{.prompt = golden_.prompt(), .options = {}};
  plain.options.greedy = true;
  plain.options.logprobs = 2;
  plain.options.max_tokens = 1000;
  plain.options.forbid = {256};  // end of text
  std::vector<GenerationRequest> requests(2, plain);
  requests[1].options.no_repeat_ngram_size = 4;  // never the same again
  requests[1].options.frequency_penalty = 0.01;
  const std::vector<Completion> want = run(requests);
  for (const Completion& completion : want) ASSERT_EQ(completion.tokens.size(), 1000u);
  std::map<std::string, double> share;  // of the second request's proposals
  for (const std::string kind : {"near", "far", "lookup"}) {
    with(kind);
    const std::vector<Completion> got = run(requests);
    for (size_t i = 0; i < requests.size(); i++) {
      EXPECT_EQ(described(got[i]), described(want[i])) << kind << " " << i;
      const GenerationStatistics& s = got[i].statistics;
      EXPECT_EQ(s.passes_tokens, 999) << kind;
      EXPECT_EQ(s.passes + s.draft->accepted, 999) << kind;
    }
    const DraftStatistics& draft = *got[1].statistics.draft;
    share[kind] = static_cast<double>(draft.accepted) / static_cast<double>(draft.proposed);
  }
  with("near");
  set_num_threads(2);
  EXPECT_EQ(described(run(std::span(requests).last(1)).front()), described(want[1]));
  // Both ways of going on are passed through, often.
  EXPECT_GT(share["near"], 0.1);
  EXPECT_LT(share["near"], 0.95);
  EXPECT_LT(share["far"], 0.1);
}

// Of samples, beside others, in any order, with little memory and on any number of threads.
TEST_P(DraftOf, ARequestsBitsAreItsOwn) {
  std::vector<GenerationRequest> requests;
  const std::string beginning = "It was the best of times, it was the best of times, it was";
  std::mt19937 random(7);
  for (size_t i = 0; i < 24; i++) {
    GenerationRequest& request = requests.emplace_back();
    request.prompt = beginning.substr(0, 1 + random() % 58);
    request.stream_index = i;
    SamplingOptions& o = request.options;
    o.max_tokens = 1 + static_cast<int64_t>(random() % 60);
    o.greedy = i % 4 == 0;
    if (!o.greedy) o.temperature = i % 2 == 0 ? 0.3 : 1, o.top_k = i % 3 == 0 ? 40 : 0;
    if (i % 5 == 0) o.stop = {"e"};
    if (i % 6 == 0) o.force_first = {'W', 'h', 'y'};
    if (i % 7 == 0) o.logprobs = 2, o.repetition_penalty = 1.3;
    if (i % 8 == 1) o.top_p = 0.9, o.logit_bias = {{256, 4}};
  }
  for (const std::string kind : {"near", "lookup"}) {
    with(kind);
    std::vector<std::string> alone;
    for (const GenerationRequest& request : requests) {
      alone.push_back(described(run(std::span(&request, 1)).front()));
    }
    for (int turn = 0; turn < 2; turn++) {
      set_num_threads(turn % 3 + 1);
      std::vector<size_t> order(requests.size());
      for (size_t i = 0; i < order.size(); i++) order[i] = i;
      std::shuffle(order.begin(), order.end(), random);
      std::vector<GenerationRequest> some;
      std::vector<std::string> streamed(order.size());
      for (size_t n = 0; n < order.size(); n++) {
        some.push_back(requests[order[n]]);
        some.back().on_text = [&, n](std::string_view piece) { streamed[n] += piece; };
      }
      // The longest needs 8 pages, of each model.
      const int64_t pages = 16 + 16 * turn;
      const int64_t page_bytes = 16 * KvPages::bytes_a_token(golden_.config, DType::fp32);
      const int64_t batch_size = 1 + static_cast<int64_t>(random() % 16);
      const std::vector<Completion> got = run(some, {batch_size, pages * page_bytes});
      for (size_t n = 0; n < order.size(); n++) {
        ASSERT_EQ(described(got[n]), alone[order[n]]) << kind << " " << turn << " " << order[n];
        EXPECT_EQ(streamed[n], got[n].text);
      }
    }
  }
}

// 20,000 texts of four tokens each way; proposals are made for the second and third.
TEST_P(DraftOf, SamplesHaveTheModelsDistribution) {
  using Text = std::vector<int32_t>;
  std::vector<GenerationRequest> requests;
  for (uint64_t i = 0; i < 20000; i++) {
    GenerationRequest& request = requests.emplace_back();
    request.prompt = "abab";
    request.stream_index = i;
    request.options.max_tokens = 4;
    request.options.top_k = 4;
    request.options.logit_bias = {{'a', 4}, {'b', 4}};  // so that the text repeats itself
    request.options.temperature = 1.5;
  }
  DraftStatistics draft;
  const auto counts = [&](uint64_t seed) {
    for (GenerationRequest& request : requests) request.options.seed = seed;
    testing::Counts<Text> texts;
    for (const Completion& completion : run(requests, {.batch_size = 64})) {
      texts[completion.tokens]++;
      if (!completion.statistics.draft) continue;
      draft.proposed += completion.statistics.draft->proposed;
      draft.accepted += completion.statistics.draft->accepted;
    }
    return texts;
  };
  const testing::Counts<Text> direct = counts(0);
  EXPECT_GT(direct.size(), 30u);
  with(GetParam() == std::string("gpt2") ? "near" : "lookup");
  EXPECT_TRUE(testing::from_one_distribution(direct, counts(1)));
  EXPECT_GT(draft.proposed, 10000);
  EXPECT_GT(draft.accepted, draft.proposed / 10);
  EXPECT_LT(draft.accepted, draft.proposed - draft.proposed / 10);
}

TEST_P(DraftOf, TextsEndWithinAPass) {
  SamplingOptions options;
  options.greedy = true;
  options.forbid = {256};
  options.max_tokens = 40;
  const Completion whole = generator_.generate(golden_.prompt(), options, 0, nullptr);
  SamplingOptions ending = options;
  ending.forbid.clear();
  ending.logit_bias = {{256, 6}};
  const Completion plain = generator_.generate(golden_.prompt(), ending, 0, nullptr);
  ASSERT_EQ(plain.finish_reason, FinishReason::end_of_text);
  with("itself");
  // At every number of tokens.
  for (options.max_tokens = 1; options.max_tokens <= 40; options.max_tokens++) {
    const Completion part = generator_.generate(golden_.prompt(), options, 0, nullptr);
    ASSERT_EQ(part.tokens.size(), static_cast<size_t>(options.max_tokens));
    EXPECT_EQ(part.text, whole.text.substr(0, part.text.size()));
  }
  // At a stop text.
  options.max_tokens = 40;
  options.stop = {whole.text.substr(13, 3)};
  const Completion stopped = generator_.generate(golden_.prompt(), options, 0, nullptr);
  EXPECT_EQ(stopped.finish_reason, FinishReason::stop);
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(options.stop.front())));
  EXPECT_EQ(stopped.statistics.passes_tokens, static_cast<int64_t>(stopped.tokens.size()) - 1);
  // At the end of text, which the draft proposes.
  options.stop.clear();
  const Completion ended = generator_.generate(golden_.prompt(), ending, 0, nullptr);
  EXPECT_EQ(described(ended), described(plain));
  EXPECT_EQ(plain.statistics.passes_tokens, plain.statistics.passes);
  EXPECT_EQ(ended.statistics.passes_tokens, plain.statistics.passes);
  generator_.draft_by_prompt_lookup();
  EXPECT_EQ(described(generator_.generate(golden_.prompt(), ending, 0, nullptr)), described(plain));
  // When it is interrupted: after a whole pass.
  int asked = 0;
  with("itself");
  const Completion part =
      generator_.generate(golden_.prompt(), options, 0, nullptr, [&] { return asked++ == 2; });
  EXPECT_EQ(part.finish_reason, FinishReason::interrupted);
  EXPECT_EQ(part.tokens.size(), 1u + 1 + 4);
  EXPECT_EQ(part.statistics.passes_tokens, 1 + 4);  // the pass that is interrupted brings none
  EXPECT_EQ(part.text, whole.text.substr(0, part.text.size()));
}

TEST_P(DraftOf, TheContextEndsTheText) {
  SamplingOptions options;
  options.greedy = true;
  options.forbid = {256};
  options.max_tokens = 100;
  const std::string prompt(kContext - 20, 'x');
  const Completion want = generator_.generate(prompt, options, 0, nullptr);
  for (const std::string kind : {"itself", "lookup", "short"}) {
    const Completion got = with(kind).generate(prompt, options, 0, nullptr);
    EXPECT_EQ(described(got), described(want)) << kind;
    EXPECT_EQ(got.finish_reason, FinishReason::context);
    EXPECT_EQ(got.tokens.size(), 21u);
  }
}

TEST_P(DraftOf, NothingIsProposedBeyondTheDraftsContext) {
  SamplingOptions options;
  options.greedy = true;
  options.forbid = {256};
  options.max_tokens = 60;
  const std::string prompt(80, 'x');
  const Completion want = generator_.generate(prompt, options, 0, nullptr);
  const Completion got = with("short").generate(prompt, options, 0, nullptr);
  EXPECT_EQ(described(got), described(want));
  EXPECT_GT(got.statistics.draft->proposed, 0);
  EXPECT_LE(got.statistics.draft->accepted, 20);  // in places 82 to 101
}

// What the options forbid is not proposed, or not accepted; where they leave a draft nothing, it
// proposes nothing.
TEST_P(DraftOf, OptionsHoldForWhatIsProposed) {
  SamplingOptions options;
  options.no_repeat_ngram_size = 1;
  options.max_tokens = 240;
  for (const std::string kind : {"itself", "near", "lookup"}) {
    const Completion got = with(kind).generate("ab", options, 3, nullptr);
    std::vector<int32_t> tokens = got.tokens;
    std::sort(tokens.begin(), tokens.end());
    EXPECT_EQ(std::adjacent_find(tokens.begin(), tokens.end()), tokens.end()) << kind;
  }
}

TEST_P(DraftOf, MemoryIsForBothModels) {
  GenerationRequest request{.prompt = "abcdefgh", .options = {}};
  request.options.forbid = {256};
  request.options.max_tokens = 25;  // 32 tokens: two pages
  const int64_t page_bytes = 16 * KvPages::bytes_a_token(golden_.config, DType::fp32);
  with("near");
  const auto done = run(std::span(&request, 1), {.kv_cache_bytes = 4 * page_bytes});
  EXPECT_EQ(done.front().statistics.kv_cache_bytes, 4 * page_bytes);
  EXPECT_EQ(done.front().statistics.kv_cache_tokens, 32);
  try {
    run(std::span(&request, 1), {.kv_cache_bytes = 4 * page_bytes - 1});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("keys and values of 32 tokens, the draft's too, need"));
  }
}

// Pages that one model has no use for any more make room for the other's: a text that a draft
// helped with, then a prompt beyond that draft's context.
TEST_P(DraftOf, MemoryOfBothModelsKeepsTheLimit) {
  const auto weights_of = [](const Golden& golden) {
    Buffer weights(DType::fp32, {static_cast<int64_t>(golden.weights.size())});
    std::copy(golden.weights.begin(), golden.weights.end(), weights.tensor().as<float>());
    return weights;
  };
  const Golden small = with_context(Golden{GetParam()}, 100);
  const Buffer weights = weights_of(golden_), draft_weights = weights_of(small);
  Decoder decoder(golden_.config, weights.tensor()), draft(small.config, draft_weights.tensor());
  const Tokenizer tokenizer = Tokenizer::bytes();
  std::vector<GenerationRequest> requests(3);
  for (GenerationRequest& request : requests) request.options.forbid = {256};
  requests[0].prompt = requests[2].prompt = "abcdefgh";
  requests[0].options.max_tokens = requests[2].options.max_tokens = 25;  // two pages of each
  requests[1].prompt = std::string(110, 'x');
  requests[1].options.max_tokens = 19;  // 8 pages
  const int64_t page_bytes = 16 * KvPages::bytes_a_token(golden_.config, DType::fp32);
  const BatchLimits limits{.batch_size = 1, .kv_cache_bytes = 8 * page_bytes};
  int64_t most = 0;
  size_t place = 0;
  const Batch* running = nullptr;
  const std::function<void(size_t, Completion)> on_done = [](size_t, const Completion&) {};
  const std::function<bool()> watch = [&] {
    most = std::max(most, running->kv_cache_bytes());
    return false;
  };
  const NextRequest next = [&]() -> std::optional<size_t> {
    return place < requests.size() ? std::optional(place++) : std::nullopt;
  };
  Batch batch({decoder, tokenizer, DType::fp32, Device::cpu, 0, DraftSource{&draft, 0}}, requests,
              limits, on_done, watch, next);
  running = &batch;
  batch.run();
  EXPECT_EQ(place, 3u);
  EXPECT_EQ(most, limits.kv_cache_bytes);
}

TEST_P(DraftOf, ADamagedDraftIsNamed) {
  Golden draft = golden_;
  draft.weights.back() = std::nanf("");
  generator_.draft_with(draft.checkpoint(folder_ / "damaged"));
  try {
    generator_.generate(golden_.prompt(), {}, 0, nullptr);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("the draft's logit of token"));
  }
}

TEST_P(DraftOf, RefusesBeams) {
  GenerationRequest request{.prompt = "a", .options = {}};
  request.options.beams.num_beams = 2;
  generator_.draft_by_prompt_lookup();
  EXPECT_THROW(run(std::span(&request, 1)), UsageError);
}

INSTANTIATE_TEST_SUITE_P(, DraftOf, ::testing::Values("gpt2", "llama"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace lockstep
