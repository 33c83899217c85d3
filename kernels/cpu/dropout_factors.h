#pragma once
#include "kernels/dropout.h"

namespace lockstep::kernels::cpu {

// What dropout multiplies places [4 * first_quad, 4 * (first_quad + quads)) of a sequence by:
// 1 / (1 - p) where a place is kept, else 0.
void dropout_factors(float* factors, const DropoutMask& mask, int64_t sequence, int64_t first_quad,
                     int64_t quads);

}  // namespace lockstep::kernels::cpu
