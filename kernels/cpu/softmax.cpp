#include "kernels/cpu/softmax.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/math.h"
#include "kernels/cpu/simd.h"

namespace lockstep::kernels::cpu {

LOCKSTEP_CLONES float maximum(const float* x, int64_t n) {
  // Of interleaved runs, because a maximum of floats in a row does not vectorise.
  constexpr int64_t kLanes = 64;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  float lanes[kLanes];
  for (float& lane : lanes) lane = kLowest;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int64_t k = 0; k < kLanes; k++) lanes[k] = x[i + k] > lanes[k] ? x[i + k] : lanes[k];
  }
  for (int64_t k = 0; i + k < n; k++) lanes[k] = x[i + k] > lanes[k] ? x[i + k] : lanes[k];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; k++) {
      lanes[k] = lanes[k + half] > lanes[k] ? lanes[k + half] : lanes[k];
    }
  }
  return lanes[0];
}

LOCKSTEP_CLONES double exponentials(float* x, float scale, float shift, int64_t n) {
  constexpr int64_t kRun = 2048;  // summed in fp32, in lanes; runs are joined in float64
  double total = 0;
  for (int64_t first = 0; first < n; first += kRun) {
    float sum = 0;
    const int64_t end = std::min(n, first + kRun);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < end; i++) {
      x[i] = math::exp_of_negative(scale * x[i] - shift);
      sum += x[i];
    }
    total += sum;
  }
  return total;
}

}  // namespace lockstep::kernels::cpu
