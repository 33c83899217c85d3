#include "kernels/machine.h"

#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <chrono>

#include "kernels/matmul.h"

namespace lockstep::kernels {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Products of `size` rows, inputs and outputs.
class Products {
 public:
  Products(int64_t size, DType dtype, Device device)
      : size_(static_cast<double>(size)),
        x_(dtype, {size, size}, device),
        weight_(dtype, {size, size}, device),
        y_(dtype, {size, size}, device),
        stream_(device) {}

  double seconds_of_one() {
    const auto start = Clock::now();
    linear_forward(y_.tensor(), x_.tensor(), weight_.tensor(), {}, stream_);
    stream_.synchronize();
    return seconds_since(start);
  }
  double operations() const { return 2 * size_ * size_ * size_; }

 private:
  double size_;
  Buffer x_, weight_, y_;
  Stream stream_;  // ends before the memory that its work uses
};

}  // namespace

double measured_product_rate(DType dtype, Device device) {
  constexpr double kSeconds = 0.2, kLongEnough = 1e-3;
  constexpr int64_t kLargest = 8192;
  double best = 0;
  for (int64_t size = 1024; size <= kLargest; size *= 2) {
    const int64_t needed = 3 * size * size * size_bytes(dtype);
    if (best > 0 && needed > free_gpu_memory() / 4) break;
    Products products(size, dtype, device);
    const auto begin = Clock::now();
    double shortest = products.seconds_of_one();  // the first one prepares itself
    do {
      shortest = std::min(shortest, products.seconds_of_one());
    } while (seconds_since(begin) < kSeconds);
    best = std::max(best, products.operations() / shortest);
    if (device == Device::cpu || shortest > kLongEnough) break;
  }
  return best;
}

std::string product_library() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace lockstep::kernels
