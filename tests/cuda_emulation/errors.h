#pragma once
#include <cuda_runtime.h>

#include <string>

namespace cuda_emulation {

// Says the message on stderr and returns `code`, which is then the thread's last error. Illegal
// addresses and failed launches are sticky: from then on every call fails, until clear_errors().
cudaError_t report(cudaError_t code, const std::string& message);
// The sticky error, or cudaSuccess.
cudaError_t sticky_error();
void clear_errors();

}  // namespace cuda_emulation
