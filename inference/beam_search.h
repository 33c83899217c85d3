#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "inference/sampling_options.h"

// Beam search as in Hugging Face's generate(): the num_beams likeliest texts so far grow together,
// each by its likeliest tokens. Diverse beam search (Vijayakumar et al., 2018) parts the beams into
// groups, which choose one after the other, each step, tokens that the groups before it did not.
//
//   score of a text    sum of its tokens' log-probabilities, as options change them
//   of an ended one    score / (tokens, the end-of-text included) ^ length_penalty
//
// A step takes the 2 * num_beams best continuations of all beams. Those among the first num_beams
// that end (end-of-text, a stop text, no room for more) compete for the num_beams best ended texts;
// the num_beams best that do not end go on. The search ends when there are num_beams ended texts
// and, by early_stopping, at once (yes), or when the best beam, if it ended now (no) or at the
// best length for it (never), could not get among them; or when no beam can go on.
namespace lockstep {

// A text while it grows.
struct Beam {
  std::vector<int32_t> tokens;  // generated
  double score = 0;
  size_t parent = 0;  // place, among the beams before the last step, of the one it continues
};

struct EndedBeam {
  std::vector<int32_t> tokens;  // generated, the end-of-text included
  double score = 0;
};

class BeamSearch {
 public:
  // Of a continuation by one token: whether it ends a text, apart from the end by `most`.
  using Ends = std::function<bool(const Beam& beam, int32_t token)>;

  // At most `most` tokens are generated after the prompt.
  BeamSearch(const SamplingOptions& options, std::span<const int32_t> prompt, int64_t most,
             Ends ends);

  // Those that grow, in order; one at first, the empty text.
  const std::vector<Beam>& beams() const { return beams_; }
  // Takes the logits (V) of the token after each of beams(), one behind the other, of which the
  // first `known` are tokens, and replaces beams(). None are left when the search has ended.
  //
  // Throws DataError when logits are not numbers, UsageError when the options rule out every token.
  void step(std::span<const float> logits, size_t known);
  // The best num_return_sequences ended texts, best first.
  std::vector<EndedBeam> best() const;

 private:
  struct Group {
    std::vector<EndedBeam> ended;  // best first
    std::vector<size_t> beams;     // places in beams_
  };
  struct Continuation {
    double score;
    size_t beam;
    int32_t token;
  };
  void process(const Beam& beam, std::span<const float> logits, std::span<double> scores);
  std::vector<Continuation> best_continuations(const Group& group, size_t known) const;
  void step_group(Group& group, size_t known, std::vector<Beam>& next);
  void end(Group& group, const Beam& beam, const Continuation& continuation) const;
  bool is_over(const Group& group, double score, size_t tokens) const;

  const SamplingOptions& options_;
  const BeamOptions& o_;
  const std::vector<int32_t> prompt_;
  const int64_t most_;
  const Ends ends_;
  const size_t group_size_;
  std::vector<Beam> beams_;
  std::vector<Group> groups_;
  std::vector<double> scores_;          // (beams, V) of the step
  std::vector<int32_t> chosen_counts_;  // (V) of tokens that groups have chosen in this step
};

}  // namespace lockstep
