#include "inference/sampling_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/check.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using O = SamplingOptions;
using Tokens = std::vector<int32_t>;

// What is said of the defaults so changed, for a vocabulary of 10.
template <class Change>
std::string error(const Change& change) {
  SamplingOptions o;
  change(o);
  try {
    validate(o);
    validate_tokens(o, 10);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "none";
}

TEST(SamplingOptions, TheEndsOfTheRangesAreInside) {
  EXPECT_EQ(error([](O&) {}), "none");
  EXPECT_EQ(error([](O& o) { o.temperature = 0; }), "none");
  EXPECT_EQ(error([](O& o) { o.top_p = 0; }), "none");
  EXPECT_EQ(error([](O& o) { o.min_p = 1; }), "none");
  EXPECT_EQ(error([](O& o) { o.presence_penalty = -2; }), "none");
  EXPECT_EQ(error([](O& o) { o.frequency_penalty = 2; }), "none");
  EXPECT_EQ(error([](O& o) { o.logprobs = 0; }), "none");
  EXPECT_EQ(error([](O& o) { o.forbid = {0, 9}; }), "none");
}

TEST(SamplingOptions, ErrorsNameTheOption) {
  EXPECT_THAT(error([](O& o) { o.temperature = -1; }), HasSubstr("--temperature is -1"));
  EXPECT_THAT(error([](O& o) { o.temperature = NAN; }), HasSubstr("--temperature"));
  EXPECT_THAT(error([](O& o) { o.top_k = -1; }), HasSubstr("--top-k"));
  EXPECT_THAT(error([](O& o) { o.top_p = -0.1; }), HasSubstr("--top-p"));
  EXPECT_THAT(error([](O& o) { o.top_p = 1.1; }), HasSubstr("--top-p"));
  EXPECT_THAT(error([](O& o) { o.top_p = NAN; }), HasSubstr("--top-p"));
  EXPECT_THAT(error([](O& o) { o.min_p = 1.1; }), HasSubstr("--min-p"));
  EXPECT_THAT(error([](O& o) { o.min_p = NAN; }), HasSubstr("--min-p"));
  EXPECT_THAT(error([](O& o) { o.typical_p = 0; }), HasSubstr("--typical-p"));
  EXPECT_THAT(error([](O& o) { o.typical_p = NAN; }), HasSubstr("--typical-p"));
  EXPECT_THAT(error([](O& o) { o.repetition_penalty = 0; }), HasSubstr("--repetition-penalty"));
  EXPECT_THAT(error([](O& o) { o.repetition_penalty = NAN; }), HasSubstr("--repetition-penalty"));
  EXPECT_THAT(error([](O& o) { o.presence_penalty = 2.5; }),
              HasSubstr("--presence-penalty is 2.5"));
  EXPECT_THAT(error([](O& o) { o.frequency_penalty = NAN; }), HasSubstr("--frequency-penalty"));
  EXPECT_THAT(error([](O& o) { o.no_repeat_ngram_size = -1; }),
              HasSubstr("--no-repeat-ngram-size"));
  EXPECT_THAT(error([](O& o) { o.logit_bias = {{1, INFINITY}}; }), HasSubstr("--logit-bias"));
  EXPECT_THAT(error([](O& o) { o.max_tokens = 0; }), HasSubstr("--max-tokens"));
  EXPECT_THAT(error([](O& o) { o.logprobs = -1; }), HasSubstr("--logprobs"));
  EXPECT_THAT(error([](O& o) { o.stop = {"a", ""}; }), HasSubstr("--stop"));
}

TEST(SamplingOptions, ContradictionsNameBoth) {
  const auto greedy = [](const auto& change) {
    return error([&](O& o) {
      o.greedy = true;
      change(o);
    });
  };
  EXPECT_EQ(greedy([](O& o) { o.repetition_penalty = 2; }), "none");
  EXPECT_EQ(greedy([](O& o) { o.temperature = 0; }), "none");
  EXPECT_THAT(greedy([](O& o) { o.temperature = 0.7; }),
              AllOf(HasSubstr("--greedy"), HasSubstr("--temperature 0.7")));
  EXPECT_THAT(greedy([](O& o) { o.top_k = 5; }), HasSubstr("--top-k 5"));
  EXPECT_THAT(greedy([](O& o) { o.top_p = 0.5; }), HasSubstr("--top-p 0.5"));
  EXPECT_THAT(greedy([](O& o) { o.min_p = 0.5; }), HasSubstr("--min-p 0.5"));
  EXPECT_THAT(greedy([](O& o) { o.typical_p = 0.5; }), HasSubstr("--typical-p 0.5"));
  EXPECT_THAT(error([](O& o) {
                o.logit_bias = {{3, 1}, {4, 1}, {3, 2}};
              }),
              HasSubstr("--logit-bias of token 3 is given twice"));
  const auto forced = [](Tokens force, Tokens forbid, Tokens forbid_first) {
    return error([&](O& o) {
      o.force_first = force;
      o.forbid = forbid;
      o.forbid_first = forbid_first;
    });
  };
  EXPECT_THAT(forced({1, 2}, {2}, {}), AllOf(HasSubstr("--force-first"), HasSubstr("--forbid;")));
  EXPECT_THAT(forced({1, 2}, {}, {1}), HasSubstr("--forbid-first;"));
  EXPECT_EQ(forced({1, 2}, {}, {2}), "none");
}

TEST(SamplingOptions, TokensMustExist) {
  EXPECT_THAT(error([](O& o) { o.forbid = {10}; }),
              HasSubstr("--forbid: there is no token 10; this model's are 0 to 9"));
  EXPECT_THAT(error([](O& o) { o.forbid_first = {-1}; }), HasSubstr("--forbid-first"));
  EXPECT_THAT(error([](O& o) { o.force_first = {10}; }), HasSubstr("--force-first"));
  EXPECT_THAT(error([](O& o) { o.logit_bias = {{10, 1}}; }), HasSubstr("--logit-bias"));
}

}  // namespace
}  // namespace lockstep
