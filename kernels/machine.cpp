#include "kernels/machine.h"

#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/cpu/simd.h"
#include "kernels/matmul.h"

namespace lockstep::kernels {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The shortest time of a call, in seconds: the first warms up, then for `budget` seconds.
template <class F>
double shortest_seconds(double budget, F&& call) {
  call();
  double best = 1e30, spent = 0;
  while (spent < budget) {
    const auto start = Clock::now();
    call();
    const double seconds = seconds_since(start);
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
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

// Reads from several places in turn, as products do: one stream does not keep memory busy.
constexpr int64_t kStreams = 16, kLine = 8;  // kLine: words
LOCKSTEP_CLONES uint64_t sum_of_words(const uint64_t* words, int64_t count) {
  uint64_t sums[kLine] = {};
  const int64_t part = count / kStreams;
  for (int64_t i = 0; i < part; i += kLine) {
    for (int64_t stream = 0; stream < kStreams; stream++) {
#pragma omp simd
      for (int64_t n = 0; n < kLine; n++) sums[n] += words[stream * part + i + n];
    }
  }
  return std::accumulate(sums, sums + kLine, uint64_t{0});
}

double host_memory_rate() {
  constexpr int64_t kBytes = int64_t{512} << 20, kGrain = int64_t{1} << 20;  // in 8-byte words
  const Buffer memory(kBytes);
  const auto* words = static_cast<const uint64_t*>(memory.tensor(DType::fp32, {kBytes / 4}).data());
  std::fill_n(const_cast<uint64_t*>(words), kBytes / 8, uint64_t{1});
  std::vector<uint64_t> sums(static_cast<size_t>(kBytes / 8 / kGrain));
  const double seconds = shortest_seconds(0.4, [&] {
    parallel_for(kBytes / 8, kGrain, [&](int64_t begin, int64_t end) {
      sums[static_cast<size_t>(begin / kGrain)] = sum_of_words(words + begin, end - begin);
    });
  });
  CHECK(std::accumulate(sums.begin(), sums.end(), uint64_t{0}) == uint64_t{kBytes / 8});
  return static_cast<double>(kBytes) / seconds;
}

}  // namespace

double measured_memory_rate(Device device) {
  if (device == Device::cpu) return host_memory_rate();
  constexpr int64_t kBytes = int64_t{256} << 20;
  const Buffer from(DType::fp32, {kBytes / 4}, device), to(DType::fp32, {kBytes / 4}, device);
  Stream stream(device);
  const double seconds = shortest_seconds(0.2, [&] {
    copy(to.tensor(), from.tensor(), stream);
    stream.synchronize();
  });
  return 2 * static_cast<double>(kBytes) / seconds;
}

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
