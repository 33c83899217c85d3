#include <algorithm>

#include "kernels/cuda/packs.cuh"
#include "kernels/reduce.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kJoinThreads = 1024;
constexpr int kCastThreads = 256;

// sums[r, block] = the sum of a block of kReduceBlock values of range r of x, or of their squares;
// 0 behind the range's end. Without ranges, one that is all of x. A thread takes each kThreads-th
// pack, whether it can be loaded as one or not.
template <bool kSquares>
__global__ void __launch_bounds__(kThreads)
    sum_blocks_kernel(double* __restrict__ sums, const float* __restrict__ x,
                      const Range* __restrict__ ranges, int64_t n) {
  constexpr int kSize = Pack<float>::kSize;
  __shared__ double scratch[kThreads / kWarpSize];
  const Range range = ranges == nullptr ? Range{0, n} : ranges[blockIdx.x];
  const int64_t begin = range.begin + int64_t{blockIdx.y} * kReduceBlock;
  const int64_t end = begin + kReduceBlock < range.end ? begin + kReduceBlock : range.end;
  const bool packed = reinterpret_cast<uintptr_t>(x + begin) % 16 == 0;
  double sum[kSize] = {};
  by_packs(packed && end - begin == kReduceBlock, [&](auto whole) {
#pragma unroll(whole ? 4 : 1)
    for (int64_t first = begin + threadIdx.x * kSize; first < end; first += kThreads * kSize) {
      const Pack<float> pack = load_pack<whole>(x, first, end);
#pragma unroll
      for (int i = 0; i < kSize; i++) {
        const double value = pack.value[i];
        sum[i] += kSquares ? value * value : value;
      }
    }
  });
  const double total = block_sum<kThreads>((sum[0] + sum[1]) + (sum[2] + sum[3]), scratch);
  if (threadIdx.x == 0) sums[int64_t{blockIdx.x} * gridDim.y + blockIdx.y] = total;
}

// totals[r] += the sum of the `count` numbers of range r: neighbours are added up until one number
// is left, by one block a range.
__global__ void __launch_bounds__(kJoinThreads)
    join_kernel(double* __restrict__ totals, double* __restrict__ all_sums, int64_t count) {
  double* sums = all_sums + blockIdx.x * count;
  for (int64_t distance = 1; distance < count; distance *= 2) {
    for (int64_t i = threadIdx.x * 2 * distance; i + distance < count;
         i += kJoinThreads * 2 * distance) {
      sums[i] += sums[i + distance];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) totals[blockIdx.x] += sums[0];
}

// `bytes`: that must be read of x.
template <bool kSquares>
void add_sums(double* totals, const Tensor& x, const Range* ranges, int64_t count, int64_t largest,
              double bytes, Stream& stream) {
  const int64_t blocks = reduce_blocks(largest);
  if (blocks == 0 || count == 0) return;
  const int64_t sums_bytes = count * blocks * static_cast<int64_t>(sizeof(double));
  auto* sums = static_cast<double*>(stream.workspace(sums_bytes));
  const auto moved = static_cast<double>(sums_bytes);
  launch({kSquares ? "sum_of_squares" : "sum", bytes + moved}, sum_blocks_kernel<kSquares>,
         dim3(static_cast<unsigned>(count), static_cast<unsigned>(blocks)), dim3(kThreads), 0,
         stream, sums, x.as<float>(), ranges, x.size());
  launch({"sum_join", moved}, join_kernel, dim3(static_cast<unsigned>(count)), dim3(kJoinThreads),
         0, stream, totals, sums, blocks);
}

// A thread converts a run of as many values as a pack of the smaller type has.
template <class To, class From>
__global__ void __launch_bounds__(kCastThreads)
    cast_kernel(To* __restrict__ out, const From* __restrict__ x, int64_t n, bool packed) {
  constexpr int kTo = Pack<To>::kSize, kFrom = Pack<From>::kSize;
  constexpr int kRun = kTo > kFrom ? kTo : kFrom;
  const int64_t first = (int64_t{blockIdx.x} * kCastThreads + threadIdx.x) * kRun;
  if (first >= n) return;
  by_packs(packed && first + kRun <= n, [&](auto whole) {
    float values[kRun];
#pragma unroll
    for (int k = 0; k < kRun; k += kFrom) {
      const Pack<From> pack = load_pack<whole>(x, first + k, n);
#pragma unroll
      for (int i = 0; i < kFrom; i++) values[k + i] = widened(pack.value[i]);
    }
#pragma unroll
    for (int k = 0; k < kRun; k += kTo) {
      Pack<To> pack;
#pragma unroll
      for (int i = 0; i < kTo; i++) pack.value[i] = rounded<To>(values[k + i]);
      store_pack<whole>(out, first + k, n, pack);
    }
  });
}

}  // namespace

void add_sum(double* total, const Tensor& x, Stream& stream) {
  add_sums<false>(total, x, nullptr, 1, x.size(), bytes_of(x), stream);
}

void add_sums_of_squares(double* totals, const Tensor& x, const Range* ranges, int64_t count,
                         int64_t largest, Stream& stream) {
  // How large each range is only the device can see; all but the last are of one size.
  const auto bytes =
      static_cast<double>(std::min(count * largest, x.size()) * size_bytes(DType::fp32));
  add_sums<true>(totals, x, ranges, count, largest, bytes, stream);
}

void cast(const Tensor& out, const Tensor& x, Stream& stream) {
  const int64_t n = x.size();
  CHECK(out.size() == n);
  if (n == 0 || out.data() == x.data()) {
    CHECK(n == 0 || out.dtype() == x.dtype(), "a cast in place");
    return;
  }
  with_float_type(out.dtype(), [&](auto to) {
    with_float_type(x.dtype(), [&](auto from) {
      using To = typename decltype(to)::type;
      using From = typename decltype(from)::type;
      if constexpr (std::is_same_v<To, From>) {
        copy(out, x.reshape(out.shape()), stream);
      } else {
        constexpr int64_t kRun = 16 / (sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
        launch({"cast", bytes_of(out, x)}, cast_kernel<To, From>,
               dim3(blocks_for(n, kCastThreads * kRun)), dim3(kCastThreads), 0, stream,
               out.as<To>(), x.as<From>(), n, aligned_to_packs(out.as<To>(), x.as<From>()));
      }
    });
  });
}

void set_zero(const Tensor& out, Stream& stream) {
  if (out.size() == 0) return;
  lockstep::cuda::set_zero(out.data(), out.size_bytes(), stream);
}

}  // namespace lockstep::kernels::cuda
