#include "inference/beam_options.h"

#include <cmath>
#include <string_view>

#include "core/check.h"
#include "inference/sampling_options.h"

namespace lockstep {

namespace {

// These hold 2 * num_beams texts and as many rows of logits.
constexpr int64_t kMostBeams = 1024;
constexpr double kMostDiversity = 100;
// The longest text has 2^24 tokens (model/config.cpp): to this power 2^960, which leaves room for
// the score that is multiplied or divided by it.
constexpr double kMostLengthPenalty = 40;

void validate_without_beams(const BeamOptions& b) {
  const auto needs_beams = [](std::string_view option, auto value, auto usual) {
    if (value != usual) throw UsageError("--{} needs --num-beams of 2 or more", option);
  };
  needs_beams("num-beam-groups", b.num_groups, int64_t{1});
  needs_beams("diversity-penalty", b.diversity_penalty, 0.0);
  needs_beams("length-penalty", b.length_penalty, 1.0);
  needs_beams("early-stopping", b.early_stopping, EarlyStopping::no);
  needs_beams("num-return-sequences", b.num_return_sequences, int64_t{1});
}

void refuse_random_choices(const SamplingOptions& o) {
  const auto not_random = [](std::string_view option, bool given) {
    if (!given) return;
    throw UsageError("--num-beams contradicts --{}: beam search chooses by itself; leave one out",
                     option);
  };
  not_random("greedy", o.greedy);
  not_random("temperature", o.temperature != 1);
  not_random("top-k", o.top_k != 0);
  not_random("top-p", o.top_p != 1);
  not_random("min-p", o.min_p != 0);
  not_random("typical-p", o.typical_p != 1);
  if (o.logprobs) throw UsageError("--logprobs is of one text: leave it out or --num-beams");
}

}  // namespace

void validate_beams(const SamplingOptions& o) {
  const BeamOptions& b = o.beams;
  if (b.num_beams < 1 || b.num_beams > kMostBeams) {
    throw UsageError("--num-beams is {}; it must be from 1 (no beam search) to {}", b.num_beams,
                     kMostBeams);
  }
  if (!b.on()) return validate_without_beams(b);
  if (b.num_groups < 1 || b.num_beams % b.num_groups != 0) {
    throw UsageError("--num-beam-groups {} does not divide --num-beams {}", b.num_groups,
                     b.num_beams);
  }
  if (!(b.diversity_penalty >= 0 && b.diversity_penalty <= kMostDiversity)) {
    throw UsageError("--diversity-penalty is {}; it must be from 0 to {}", b.diversity_penalty,
                     kMostDiversity);
  }
  if ((b.num_groups > 1) != (b.diversity_penalty > 0)) {
    throw UsageError(
        "--num-beam-groups of 2 or more and --diversity-penalty above 0 need each other");
  }
  if (!(std::abs(b.length_penalty) <= kMostLengthPenalty)) {
    throw UsageError("--length-penalty is {}; it must be from {} to {}", b.length_penalty,
                     -kMostLengthPenalty, kMostLengthPenalty);
  }
  if (b.num_return_sequences < 1 || b.num_return_sequences > b.num_beams) {
    throw UsageError("--num-return-sequences is {}; it must be from 1 to --num-beams, {}",
                     b.num_return_sequences, b.num_beams);
  }
  refuse_random_choices(o);
}

}  // namespace lockstep
