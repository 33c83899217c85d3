#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulation/device_code.h"  // the same names for the C++ compiler: blocks on the CPU
#endif

#include <cstdint>
#include <utility>

#include "core/cuda_runtime.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/profile.h"
#include "core/range.h"
#include "core/tensor.h"
#include "kernels/work.h"

// What the kernels in CUDA share. Each .cu compiles two ways from one source: by nvcc, and by the
// C++ compiler for the emulated device (docs/cuda_backend.md). So: no <<<>>> but launch(), no
// extern __shared__ but dynamic_shared(), no inline PTX, cub or cooperative groups.
namespace lockstep::kernels::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kWholeWarp = 0xffffffffu;

// Enqueues kernel(args...) over grid x block threads, with shared_bytes of dynamic_shared().
// `work`: what it must do at least, whatever it does to get there.
template <class... Parameters, class... Args>
void launch(const Work& work, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            int64_t shared_bytes, Stream& stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (stream.note(work)) return;
  const ProfileScope scope(work, stream);
  const auto native = static_cast<cudaStream_t>(stream.native());
#ifdef __CUDACC__
  if (shared_bytes > 48 * 1024) {
    lockstep::cuda::check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(shared_bytes)),
                          "asking for shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = native;
  const cudaError_t code = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
#else
  const cudaError_t code = cuda_emulation::launch(
      kernel, grid, block, static_cast<size_t>(shared_bytes), native, std::forward<Args>(args)...);
#endif
  lockstep::cuda::check(code, "starting a kernel");
}

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#else
  return static_cast<T*>(cuda_emulation::dynamic_shared());
#endif
}

// Blocks of `each` that cover n.
constexpr unsigned blocks_for(int64_t n, int64_t each) {
  return static_cast<unsigned>(pieces(n, each));
}

// to_float and from_float (core/dtype.h) by the device's own instructions.
__device__ inline float widened(float x) { return x; }
__device__ inline float widened(bf16 x) { return to_float(x); }
__device__ inline float widened(fp16 x) { return __half2float(__half(__half_raw{x.bits})); }
template <class T>
__device__ T rounded(float x);
template <>
__device__ inline float rounded<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 rounded<bf16>(float x) {
  return {static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x)).x};
}
template <>
__device__ inline fp16 rounded<fp16>(float x) {
  return {static_cast<__half_raw>(__float2half_rn(x)).x};
}

// 16 bytes of a row: one load or store instruction.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T value[kSize];
};

// Whether runs that begin at these addresses may be read and written by whole packs.
template <class... Pointers>
bool aligned_to_packs(const Pointers*... runs) {
  return ((reinterpret_cast<uintptr_t>(runs) % 16 == 0) && ...);
}

// Whether rows of `cols` elements, the first of which begin at these addresses, are whole packs.
template <class T, class... Pointers>
bool in_packs(int64_t cols, const Pointers*... rows) {
  return cols % Pack<T>::kSize == 0 && aligned_to_packs(rows...);
}

// The sum of x over the warp, in every lane.
template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, distance);
  }
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, distance));
  }
  return x;
}

// The sum of x over a block of kThreads, in every thread; its order depends on kThreads alone.
// `scratch` is shared memory of kThreads / kWarpSize that no other call uses before the next
// barrier.
template <int kThreads, class T>
__device__ T block_sum(T x, T* scratch) {
  x = warp_sum(x);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % kWarpSize == 0) scratch[thread / kWarpSize] = x;
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarpSize; warp++) sum += scratch[warp];
  return sum;
}
template <int kThreads>
__device__ float block_max(float x, float* scratch) {
  x = warp_max(x);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % kWarpSize == 0) scratch[thread / kWarpSize] = x;
  __syncthreads();
  float most = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / kWarpSize; warp++) most = fmaxf(most, scratch[warp]);
  return most;
}

}  // namespace lockstep::kernels::cuda
