#include "kernels/machine.h"

#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <chrono>

#include "kernels/matmul.h"

namespace lockstep::kernels {

double measured_product_rate(DType dtype) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kSize = 1024;
  constexpr double kOperations = 2.0 * kSize * kSize * kSize;
  constexpr double kSeconds = 0.2;
  const Buffer x(dtype, {kSize, kSize}), weight(dtype, {kSize, kSize}), y(dtype, {kSize, kSize});
  Stream stream;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  // The first product prepares itself; it counts only where it alone takes all the time.
  double best = 0;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    linear_forward(y.tensor(), x.tensor(), weight.tensor(), {}, stream);
    best = std::max(best, kOperations / seconds_since(start));
  } while (seconds_since(begin) < kSeconds);
  return best;
}

std::string product_library() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace lockstep::kernels
