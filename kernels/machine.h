#pragma once
#include <string>

#include "core/device.h"
#include "core/dtype.h"

namespace lockstep::kernels {

// Floating-point operations a second that the forward product of a linear layer reaches on `device`
// with operands of this type: 1024 rows, inputs and outputs (on a GPU more, until one product takes
// a millisecond), all threads, the best of several in about a fifth of a second. What workers share
// of a machine they also share here if they all measure at the same time.
double measured_product_rate(DType dtype, Device device = Device::cpu);

// Bytes a second that all threads read together from memory beyond the caches, or, on a GPU, that
// copying within its memory reads and writes; the best of several in about half a second.
double measured_memory_rate(Device device = Device::cpu);

// The library that computes matrix products, and its version: "oneDNN 2.6.3".
std::string product_library();

// cuBLASLt, which computes them on GPUs: "13.1.0". Defined in a build with CUDA only.
LibraryVersion cublaslt_version();

}  // namespace lockstep::kernels
