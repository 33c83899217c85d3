#include "data/sampler.h"

#include <algorithm>
#include <bit>

#include "core/check.h"
#include "core/random.h"

namespace lockstep {
namespace {

// Four rounds of a random function make a pseudorandom permutation (Luby and Rackoff, 1988) of many
// places; more mix fewer places better.
constexpr uint32_t kRounds = 8;

// Keeps the sampler's random numbers apart from those that others draw from the same seed.
constexpr uint64_t kKey = 0x53414d504c455231;

// One bijection of [0, 4^half_bits) for each (seed, epoch).
uint64_t feistel(uint64_t index, int half_bits, uint64_t epoch, PhiloxKey key) {
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = index >> half_bits, right = index & mask;
  for (uint32_t round = 0; round < kRounds; round++) {
    const PhiloxCounter random =
        philox({static_cast<uint32_t>(right), round, static_cast<uint32_t>(epoch),
                static_cast<uint32_t>(epoch >> 32)},
               key);
    const uint64_t mixed = left ^ (random[0] & mask);
    left = right;
    right = mixed;
  }
  return left << half_bits | right;
}

}  // namespace

Sampler::Sampler(int64_t num_tokens, int64_t sequence_length, int64_t batch_size, uint64_t seed)
    : num_sequences_(sequence_length > 0 ? (num_tokens - 1) / sequence_length : 0),
      sequence_length_(sequence_length),
      batch_size_(batch_size),
      seed_(seed) {
  CHECK(sequence_length > 0 && batch_size > 0);
  if (num_tokens <= sequence_length) {
    throw DataError(
        "the dataset's training split has {} tokens; one sequence of --context-length {} needs {}\n"
        "Prepare more text, or train with a shorter context.",
        num_tokens, sequence_length, sequence_length + 1);
  }
}

int64_t Sampler::first_token(int64_t step, int64_t place) const {
  CHECK(step >= 0 && place >= 0 && place < batch_size_);
  const uint64_t visit = static_cast<uint64_t>(step * batch_size_ + place);
  const uint64_t n = static_cast<uint64_t>(num_sequences_);
  // Two halves of equal width that hold every index: at most 4 n places, so the walk takes four
  // tries on average. A network of very few places would favour some orders: 256 at least.
  const int half_bits = std::max(4, static_cast<int>(std::bit_width(n - 1) + 1) / 2);
  uint64_t index = visit % n;
  do {
    index = feistel(index, half_bits, visit / n, philox_key(seed_ ^ kKey));
  } while (index >= n);
  return static_cast<int64_t>(index) * sequence_length_;
}

double Sampler::epoch(int64_t step) const {
  return static_cast<double>(step) * static_cast<double>(batch_size_) /
         static_cast<double>(num_sequences_);
}

}  // namespace lockstep
