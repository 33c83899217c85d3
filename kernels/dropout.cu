#include "kernels/cuda/packs.cuh"
#include "kernels/dropout.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A thread has one pack of one sequence, which is whole quads of the mask. Without a residual,
// out = dropout(x).
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_dropped_kernel(T* out, const T* residual, const T* x, int64_t packs,
                       int64_t packs_of_sequence, int64_t length, bool whole, DropoutMask mask,
                       uint32_t threshold, float scale) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= packs) return;
  const int64_t sequence = n / packs_of_sequence;
  const int64_t place = (n - sequence * packs_of_sequence) * Pack<T>::kSize;
  const int64_t at = sequence * length + place, count = length - place;
  const Pack<T> values = load_pack(x + at, count, whole);
  const Pack<T> kept = residual == nullptr ? Pack<T>{} : load_pack(residual + at, count, whole);
  const uint64_t key = mask.active() ? mask.key() : 0;
  Pack<T> sum;
#pragma unroll
  for (int quad = 0; quad < Pack<T>::kSize / 4; quad++) {
    PhiloxCounter words{};
    if (mask.active()) words = mask.words(key, static_cast<uint32_t>(sequence), place / 4 + quad);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int i = 4 * quad + j;
      const float value = widened(values.value[i]) * (words[j] >= threshold ? scale : 0.0f);
      sum.value[i] = rounded<T>(residual == nullptr ? value : widened(kept.value[i]) + value);
    }
  }
  store_pack(out + at, sum, count, whole);
}

// residual may be empty.
void add_dropped(const Tensor& out, const Tensor& residual, const Tensor& x,
                 const DropoutMask& mask, Stream& stream) {
  CHECK(out.size() == x.size() && x.shape().rank() > 0);
  const int64_t sequences = x.dim(0), length = sequences == 0 ? 0 : x.size() / sequences;
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t packs = pieces(length, Pack<T>::kSize);
    launch({residual.empty() ? "dropout" : "residual_add", bytes_of(out, residual, x)},
           add_dropped_kernel<T>, dim3(blocks_for(sequences * packs, kThreads)), dim3(kThreads), 0,
           stream, out.as<T>(), data_or_null<T>(residual), x.as<T>(), sequences * packs, packs,
           length, in_packs<T>(length, out.data(), residual.data(), x.data()), mask,
           mask.threshold(), mask.scale());
  });
}

}  // namespace

void dropout(const Tensor& out, const Tensor& x, const DropoutMask& mask, Stream& stream) {
  if (!mask.active() && out.data() == x.data()) return;
  add_dropped(out, Tensor(), x, mask, stream);
}

void residual_add(const Tensor& out, const Tensor& residual, const Tensor& x,
                  const DropoutMask& mask, Stream& stream) {
  CHECK(residual.size() == x.size());
  add_dropped(out, residual, x, mask, stream);
}

}  // namespace lockstep::kernels::cuda
