#pragma once
#include <cstdint>

namespace lockstep {

// Which sequences a step trains on: a pure function of seed and step, the same on every worker.
//
// A split of S tokens holds n = floor((S - 1) / T) sequences; sequence i is tokens
// [i * T, i * T + T], the last of them only a target. Place p of the run (step * batch_size + its
// place in the batch) visits sequence permute(p mod n) under a key made of seed and epoch p / n: a
// Feistel network over the indices, walked until it lands inside (Black & Rogaway, 2002). So each
// sequence comes exactly once an epoch, with no table in memory.
class Sampler {
 public:
  // Throws DataError when the split does not hold one sequence.
  Sampler(int64_t num_tokens, int64_t sequence_length, int64_t batch_size, uint64_t seed);

  int64_t num_sequences() const { return num_sequences_; }
  // First token of the sequence at `place` (0 .. batch_size) of `step`'s global batch.
  int64_t first_token(int64_t step, int64_t place) const;
  // Epochs begun at the start of `step`, fraction included.
  double epoch(int64_t step) const;

 private:
  int64_t num_sequences_, sequence_length_, batch_size_;
  uint64_t seed_;
};

}  // namespace lockstep
