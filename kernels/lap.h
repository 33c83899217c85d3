#pragma once
#include "core/device.h"

namespace lockstep::kernels::cpu {

// *seconds = now - *seconds, on a clock of the device that computes, read when all that was
// enqueued before is done. Of 0 the first call makes the time, the second what passed since; to a
// microsecond. So a part of a step is timed where it runs, and nobody waits for it.
void lap(double* seconds, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::lap) lap;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void lap(double* seconds, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::lap(seconds, stream);
  }
  return cpu::lap(seconds, stream);
}

}  // namespace lockstep::kernels
