#include <chrono>

#include "kernels/cuda/device.cuh"
#include "kernels/lap.h"

namespace lockstep::kernels::cuda {
namespace {

// Nanoseconds on a clock that all multiprocessors share (PTX ISA, %globaltimer).
__device__ unsigned long long global_time() {
#ifdef __CUDACC__
  unsigned long long nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
#else
  return static_cast<unsigned long long>(
      std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
#endif
}

__global__ void __launch_bounds__(1) lap_kernel(double* seconds) {
  *seconds = 1e-9 * static_cast<double>(global_time()) - *seconds;
}

}  // namespace

void lap(double* seconds, Stream& stream) {
  launch({"lap", 2.0 * sizeof(double)}, lap_kernel, dim3(1), dim3(1), 0, stream, seconds);
}

}  // namespace lockstep::kernels::cuda
