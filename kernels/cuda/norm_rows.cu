#include "kernels/cuda/norm_rows.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kGroups = 32;

// A thread adds up every 32nd partial sum of a column, and then one joins the 32 groups.
__global__ void __launch_bounds__(kWarpSize* kGroups)
    add_partials_kernel(float* first, float* second, const float* __restrict__ partials,
                        int64_t blocks, int64_t channels) {
  __shared__ float sums[kGroups][kWarpSize];
  const int64_t channel = int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
  const int64_t stride = channels * gridDim.y;
  const float* column = partials + blockIdx.y * channels + channel;
  float sum = 0;
  if (channel < channels) {
#pragma unroll 8
    for (int64_t block = threadIdx.y; block < blocks; block += kGroups) {
      sum += column[block * stride];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || channel >= channels) return;
  sum = 0;
  for (int group = 0; group < kGroups; group++) sum += sums[group][threadIdx.x];
  float* out = blockIdx.y == 0 ? first : second;
  out[channel] += sum;
}

}  // namespace

void add_partials(float* first, float* second, const float* partials, int64_t blocks,
                  int64_t channels, Stream& stream) {
  if (blocks == 0) return;
  const int sums = second == nullptr ? 1 : 2;
  // The sums themselves are read and written.
  launch({"norm_partial_sums", partial_bytes(blocks + 2, sums, channels)}, add_partials_kernel,
         dim3(blocks_for(channels, kWarpSize), static_cast<unsigned>(sums)),
         dim3(kWarpSize, kGroups), 0, stream, first, second, partials, blocks, channels);
}

}  // namespace lockstep::kernels::cuda
