#include "kernels/cpu/dropout_factors.h"

#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {
namespace {

// By value: the compiler need not fear that factors and mask overlap.
LOCKSTEP_CLONES void fill(float* factors, DropoutMask mask, uint32_t sequence, int64_t first_quad,
                          int64_t quads) {
  const uint32_t threshold = mask.threshold();
  const float scale = mask.scale();
  const uint64_t key = mask.key();
#pragma omp simd
  for (int64_t q = 0; q < quads; q++) {
    const PhiloxCounter words = mask.words(key, sequence, static_cast<uint64_t>(first_quad + q));
    factors[4 * q] = words[0] >= threshold ? scale : 0.0f;
    factors[4 * q + 1] = words[1] >= threshold ? scale : 0.0f;
    factors[4 * q + 2] = words[2] >= threshold ? scale : 0.0f;
    factors[4 * q + 3] = words[3] >= threshold ? scale : 0.0f;
  }
}

}  // namespace

void dropout_factors(float* factors, const DropoutMask& mask, int64_t sequence, int64_t first_quad,
                     int64_t quads) {
  fill(factors, mask, static_cast<uint32_t>(sequence), first_quad, quads);
}

}  // namespace lockstep::kernels::cpu
