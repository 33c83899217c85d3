#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "cuda_emulation/fibers.h"
#include "cuda_emulation/memory.h"
#include "cuda_emulation/scheduler.h"

// What a .cu file needs to compile as C++ for the emulated device: the names of CUDA's device code
// and launch(). One thread of the device runs at a time, so nothing here is atomic, and shared
// memory is static. That of a __shared__ variable keeps what the last block left in it.

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static

#define threadIdx (cuda_emulation::this_thread->index)
#define blockIdx (cuda_emulation::this_block->index)
#define blockDim (cuda_emulation::this_block->threads)
#define gridDim (cuda_emulation::this_block->blocks)
#define warpSize (cuda_emulation::kWarpSize)

namespace cuda_emulation {

inline void* dynamic_shared() { return this_block->dynamic_shared; }

// cudaErrorInvalidConfiguration where an H100 could not run the grid.
cudaError_t check_launch(dim3 blocks, dim3 threads, size_t shared_bytes);

// Runs the grid now, and reports what went wrong in it.
void run_kernel(const Grid& grid, const std::function<void()>& thread);

template <class T>
bool is_reachable(const T& argument) {
  if constexpr (std::is_pointer_v<T>) return check_pointer(argument, "a kernel's argument");
  return true;
}
template <class T>
void check_surroundings(const T& argument) {
  if constexpr (std::is_pointer_v<T>) check_red_zones(argument, "a kernel");
}

// Enqueues kernel(args...) over blocks x threads.
template <class... Parameters, class... Args>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
                   cudaStream_t stream, Args&&... args) {
  if (const cudaError_t code = check_launch(blocks, threads, shared_bytes)) return code;
  std::tuple<std::decay_t<Parameters>...> arguments(static_cast<Parameters>(args)...);
  return submit_once(stream, "kernel",
                     [kernel, grid = Grid{blocks, threads, shared_bytes}, arguments] {
                       std::apply(
                           [&](const auto&... argument) {
                             if (!(is_reachable(argument) && ...)) return;
                             run_kernel(grid, [&] { kernel(argument...); });
                             (check_surroundings(argument), ...);
                           },
                           arguments);
                     });
}

template <class T>
const uint64_t* exchange_values(unsigned mask, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return exchange(mask, bits);
}

template <class T>
T shuffle(unsigned mask, T value, int source) {
  const uint64_t* values = exchange_values(mask, value);
  T result;
  std::memcpy(&result, &values[source], sizeof(T));
  return result;
}

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::synchronize_block(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_emulation::exchange(mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = cuda_emulation::lane() & ~(width - 1);
  return cuda_emulation::shuffle(mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = cuda_emulation::lane(), source = lane ^ bits;
  return cuda_emulation::shuffle(mask, value, source / width <= lane / width ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = cuda_emulation::lane(), source = lane + static_cast<int>(distance);
  return cuda_emulation::shuffle(mask, value, source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = cuda_emulation::lane(), source = lane - static_cast<int>(distance);
  const int first = lane & ~(width - 1);
  return cuda_emulation::shuffle(mask, value, source >= first ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* values = cuda_emulation::exchange(mask, predicate != 0);
  unsigned result = 0;
  for (unsigned i = 0; i < 32; i++) result |= (values[i] == 1 ? 1u : 0u) << i;
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t* values = cuda_emulation::exchange_values(mask, value);
  const uint64_t own = values[cuda_emulation::lane()];
  unsigned result = 0;
  for (unsigned i = 0; i < 32; i++) result |= (values[i] == own ? 1u : 0u) << i;
  return result & mask;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, std::type_identity_t<T> value) {
  *to = value;
}
template <class T>
void __stcg(T* to, std::type_identity_t<T> value) {
  *to = value;
}

// Atomics return what was there before.
template <class T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  *to = before + value;
  return before;
}
template <class T>
T atomicMax(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  *to = std::max(before, value);
  return before;
}
template <class T>
T atomicMin(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  *to = std::min(before, value);
  return before;
}
template <class T>
T atomicOr(T* to, std::type_identity_t<T> bits) {
  const T before = *to;
  *to = before | bits;
  return before;
}
template <class T>
T atomicExch(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  *to = value;
  return before;
}
template <class T>
T atomicCAS(T* to, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T before = *to;
  if (before == expected) *to = value;
  return before;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }  // NaN: 0
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
// glibc declares __expf and __logf itself.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)

inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
