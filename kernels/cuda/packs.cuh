#pragma once
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace lockstep::kernels::cuda {

// Values [first, first + Pack<T>::kSize) of the n at x, zeros beyond the end. kWhole: x is aligned
// to packs, and this one ends before n.
template <bool kWhole, class T>
__device__ Pack<T> load_pack(const T* x, int64_t first, [[maybe_unused]] int64_t n) {
  if constexpr (kWhole) {
    return *reinterpret_cast<const Pack<T>*>(x + first);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) pack.value[i] = first + i < n ? x[first + i] : T{};
    return pack;
  }
}

template <bool kWhole, class T>
__device__ void store_pack(T* x, int64_t first, [[maybe_unused]] int64_t n, const Pack<T>& pack) {
  if constexpr (kWhole) {
    *reinterpret_cast<Pack<T>*>(x + first) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      if (first + i < n) x[first + i] = pack.value[i];
    }
  }
}

// body(std::bool_constant<whole>{}): asks once, so that the loads of a loop are not held apart by
// branches.
template <class Body>
__device__ void by_packs(bool whole, Body body) {
  if (whole) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

// The same where `whole` is known only when the kernel runs, of the `count` values at `x`.
template <class T>
__device__ Pack<T> load_pack(const T* x, int64_t count, bool whole) {
  return whole ? load_pack<true>(x, 0, count) : load_pack<false>(x, 0, count);
}
template <class T>
__device__ void store_pack(T* x, const Pack<T>& pack, int64_t count, bool whole) {
  whole ? store_pack<true>(x, 0, count, pack) : store_pack<false>(x, 0, count, pack);
}

}  // namespace lockstep::kernels::cuda
