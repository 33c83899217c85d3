#pragma once
#include <cstdint>

namespace lockstep {

// When beam search ends (inference/beam_search.h).
enum class EarlyStopping { no, yes, never };

struct BeamOptions {
  int64_t num_beams = 1;  // 1: no beam search
  int64_t num_groups = 1;
  double diversity_penalty =
      0;                      // subtracted for each earlier group that chose a token in this step
  double length_penalty = 1;  // above 0 prefers long texts
  EarlyStopping early_stopping = EarlyStopping::no;
  int64_t num_return_sequences = 1;  // the best so many texts

  bool on() const { return num_beams > 1; }
};

struct SamplingOptions;

// Throws UsageError for values that do not fit together, and for beam search with options of a
// random choice.
void validate_beams(const SamplingOptions& options);

}  // namespace lockstep
