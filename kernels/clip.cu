#include <algorithm>

#include "kernels/clip.h"
#include "kernels/cuda/device.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kStaged = 4096;  // numbers: 32 KiB of shared memory

// One thread adds up, in the order that the bits need; the others fetch for it, where all fits.
__global__ void __launch_bounds__(kThreads)
    decide_kernel(StepDecision* decision, AdamStep* step, double* seconds,
                  const double* __restrict__ numbers, const StepNumbers places,
                  const ClipInputs* __restrict__ inputs) {
  double* staged = dynamic_shared<double>();
  const int64_t count = places.workers * places.size();
  const bool fits = count <= kStaged;
  for (int64_t i = threadIdx.x; fits && i < count; i += kThreads) staged[i] = numbers[i];
  for (int w = threadIdx.x; w < places.workers; w += kThreads) {
    seconds[w] = numbers[places.seconds(w)];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const double* from = fits ? staged : numbers;
  const StepDecision made = decided(places, [&](int64_t i) { return from[i]; });
  const double norm = sqrt(made.sum_of_squares) / inputs->loss_scale;
  step->gradient_factor = static_cast<float>(clip_factor(*inputs, norm));
  step->skipped = !made.finite;
  *decision = made;
}

}  // namespace

void decide_step(StepDecision* decision, AdamStep* step, double* seconds, const double* numbers,
                 const StepNumbers& places, const ClipInputs* inputs, Stream& stream) {
  const int64_t bytes = places.workers * places.size() * static_cast<int64_t>(sizeof(double));
  const int64_t staged = std::min(bytes, kStaged * static_cast<int64_t>(sizeof(double)));
  launch({"decide_step", static_cast<double>(bytes)}, decide_kernel, dim3(1), dim3(kThreads),
         staged, stream, decision, step, seconds, numbers, places, inputs);
}

}  // namespace lockstep::kernels::cuda
