#pragma once
#include "kernels/cuda/device.cuh"

// Rows and flat runs by packs, whether or not their memory is aligned and their length a multiple:
// the thread that has an element, and so the order of every sum, depends on its place alone.
namespace lockstep::kernels::cuda {

constexpr int64_t packs_for(int64_t n, int pack_size) { return (n + pack_size - 1) / pack_size; }

// The elements at `from` of which `count` exist; the others are zero. `whole`: in_packs() holds.
template <class T>
__device__ Pack<T> load_pack(const T* from, int64_t count, bool whole) {
  if (whole) return *reinterpret_cast<const Pack<T>*>(from);
  Pack<T> pack{};
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; i++) {
    if (i < count) pack.value[i] = from[i];
  }
  return pack;
}

template <class T>
__device__ void store_pack(T* to, const Pack<T>& pack, int64_t count, bool whole) {
  if (whole) {
    *reinterpret_cast<Pack<T>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; i++) {
    if (i < count) to[i] = pack.value[i];
  }
}

}  // namespace lockstep::kernels::cuda
