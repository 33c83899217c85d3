#include "inference/sampling_options.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/check.h"

namespace lockstep {
namespace {

// OpenAI's and vLLM's range of presence and frequency penalties.
constexpr double kStrongestPenalty = 2;
// Beyond any use, and far from what float64 cannot hold when it changes a float32.
constexpr double kLargest = 1e6;

void validate_processors(const SamplingOptions& o) {
  if (!(o.repetition_penalty >= 1 / kLargest && o.repetition_penalty <= kLargest)) {
    throw UsageError("--repetition-penalty is {}; it must be from {} to {} (1: none)",
                     o.repetition_penalty, 1 / kLargest, kLargest);
  }
  const auto additive = [](std::string_view option, double value) {
    if (std::abs(value) <= kStrongestPenalty) return;
    throw UsageError("--{} is {}; it must be from -2 to 2 (0: none)", option, value);
  };
  additive("presence-penalty", o.presence_penalty);
  additive("frequency-penalty", o.frequency_penalty);
  if (o.no_repeat_ngram_size < 0) {
    throw UsageError("--no-repeat-ngram-size is {}; it must be 0 (none) or more",
                     o.no_repeat_ngram_size);
  }
  for (size_t i = 0; i < o.logit_bias.size(); i++) {
    const auto [token, bias] = o.logit_bias[i];
    if (!(std::abs(bias) <= kLargest)) {
      throw UsageError("--logit-bias of token {} is {}; it must be from {} to {}", token, bias,
                       -kLargest, kLargest);
    }
    for (size_t j = 0; j < i; j++) {
      if (o.logit_bias[j].token != token) continue;
      throw UsageError("--logit-bias of token {} is given twice; give it once", token);
    }
  }
}

void validate_choice(const SamplingOptions& o) {
  if (!(o.temperature >= 0 && o.temperature < INFINITY)) {
    throw UsageError("--temperature is {}; it must be 0 (greedy) or more", o.temperature);
  }
  if (o.top_k < 0) {
    throw UsageError("--top-k is {}; it must be 0 (all tokens) or more", o.top_k);
  }
  if (!(o.top_p >= 0 && o.top_p <= 1)) {
    throw UsageError("--top-p is {}; it must be from 0 (the likeliest token) to 1 (all)", o.top_p);
  }
  if (!(o.min_p >= 0 && o.min_p <= 1)) {
    throw UsageError("--min-p is {}; it must be from 0 (all tokens) to 1", o.min_p);
  }
  if (!(o.typical_p > 0 && o.typical_p <= 1)) {
    throw UsageError("--typical-p is {}; it must be above 0 and at most 1 (all tokens)",
                     o.typical_p);
  }
}

void refuse_contradictions(const SamplingOptions& o) {
  if (o.greedy) {
    const auto random_only = [](std::string_view option, auto value, auto without) {
      if (value == without) return;
      throw UsageError("--greedy contradicts --{} {}, which is for random choices; leave one out",
                       option, value);
    };
    if (o.temperature != 0) random_only("temperature", o.temperature, 1.0);
    random_only("top-k", o.top_k, int64_t{0});
    random_only("top-p", o.top_p, 1.0);
    random_only("min-p", o.min_p, 0.0);
    random_only("typical-p", o.typical_p, 1.0);
  }
  const auto both = [](std::string_view option, const std::vector<int32_t>& forbidden,
                       int32_t forced) {
    if (std::find(forbidden.begin(), forbidden.end(), forced) == forbidden.end()) return;
    throw UsageError("token {} is given to --force-first and to --{}; leave one out", forced,
                     option);
  };
  for (const int32_t forced : o.force_first) both("forbid", o.forbid, forced);
  if (!o.force_first.empty()) both("forbid-first", o.forbid_first, o.force_first.front());
}

}  // namespace

void validate(const SamplingOptions& o) {
  if (o.max_tokens < 1) {
    throw UsageError("--max-tokens is {}; it must be at least 1", o.max_tokens);
  }
  for (const std::string& stop : o.stop) {
    if (stop.empty()) throw UsageError("--stop is empty: every text would end at once");
  }
  if (o.logprobs && *o.logprobs < 0) {
    throw UsageError("--logprobs is {}; it must be 0 (the chosen token alone) or more",
                     *o.logprobs);
  }
  validate_processors(o);
  validate_choice(o);
  validate_beams(o);
  refuse_contradictions(o);
}

void validate_tokens(const SamplingOptions& o, int64_t vocab_size) {
  const auto check = [&](std::string_view option, int32_t token) {
    if (0 <= token && token < vocab_size) return;
    throw UsageError("--{}: there is no token {}; this model's are 0 to {}", option, token,
                     vocab_size - 1);
  };
  for (const TokenBias& b : o.logit_bias) check("logit-bias", b.token);
  for (const int32_t token : o.forbid) check("forbid", token);
  for (const int32_t token : o.forbid_first) check("forbid-first", token);
  for (const int32_t token : o.force_first) check("force-first", token);
}

}  // namespace lockstep
