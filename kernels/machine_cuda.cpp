#include <cublasLt.h>
#include <fmt/format.h>

#include "kernels/machine.h"

namespace lockstep::kernels {

LibraryVersion cublaslt_version() {
  // cuBLAS counts 10000 * major + 100 * minor + patch, as CUBLAS_VERSION does.
  const auto text = [](size_t version) {
    return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  };
  return {text(CUBLAS_VERSION), text(cublasLtGetVersion())};
}

}  // namespace lockstep::kernels
