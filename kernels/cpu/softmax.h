#pragma once
#include <cstdint>

// The two passes of a softmax over a row of fp32.
namespace lockstep::kernels::cpu {

// The largest x[i]; -inf when n = 0. NaN is passed over: it comes back in the sum of exponentials.
float maximum(const float* x, int64_t n);

// x[i] = exp(scale * x[i] - shift); returns their sum.
double exponentials(float* x, float scale, float shift, int64_t n);

}  // namespace lockstep::kernels::cpu
