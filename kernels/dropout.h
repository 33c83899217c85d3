#pragma once
#include "core/device.h"
#include "core/random.h"
#include "core/tensor.h"

// Dropout (Srivastava et al., 2014): each value is kept with probability 1 - p and then divided by
// 1 - p. The mask is never stored: it is a function of seed, step, sequence, site and place, made
// again by backward, and the same whichever worker has the sequence.
namespace lockstep::kernels {

struct DropoutMask {
  float probability = 0;  // of dropping, in [0, 1); 0: no dropout
  uint64_t seed = 0;      // of the run
  // In the memory of the device that computes, so that a captured graph serves all steps; read
  // where the mask is active.
  const uint64_t* step = nullptr;
  uint32_t first_sequence = 0;  // place in the global batch of the tensor's first sequence
  uint32_t site = 0;            // which dropout of the model; each has its own numbers

  constexpr bool active() const { return probability > 0; }
  constexpr float scale() const { return 1.0f / (1.0f - probability); }

  constexpr uint64_t key() const { return seed ^ (*step * 0x9E3779B97F4A7C15ull); }
  // Random words for places [4 * quad, 4 * quad + 4) of sequence `sequence` of the tensor, with the
  // mask's key(); the place is kept when its word is at least threshold().
  constexpr PhiloxCounter words(uint64_t key, uint32_t sequence, uint64_t quad) const {
    return philox({static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32) ^ (site << 8),
                   first_sequence + sequence, 0xD509u},
                  philox_key(key));
  }
  constexpr uint32_t threshold() const {
    return static_cast<uint32_t>(static_cast<double>(probability) * 0x1p32);
  }
};

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {

// out = x * mask / (1 - p); x and out (B, T, C), may be the same. Backward is the same function.
void dropout(const Tensor& out, const Tensor& x, const DropoutMask& mask, Stream& stream);

// out = residual + dropout(x); all (B, T, C) of one dtype, out may be residual or x.
void residual_add(const Tensor& out, const Tensor& residual, const Tensor& x,
                  const DropoutMask& mask, Stream& stream);

}  // namespace lockstep::kernels::cpu

namespace lockstep::kernels::cuda {
decltype(cpu::dropout) dropout;
decltype(cpu::residual_add) residual_add;
}  // namespace lockstep::kernels::cuda

namespace lockstep::kernels {

inline void dropout(const Tensor& out, const Tensor& x, const DropoutMask& mask, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::dropout(out, x, mask, stream);
  }
  return cpu::dropout(out, x, mask, stream);
}

inline void residual_add(const Tensor& out, const Tensor& residual, const Tensor& x,
                         const DropoutMask& mask, Stream& stream) {
  if constexpr (kCudaIsBuilt) {
    if (stream.device() == Device::cuda) return cuda::residual_add(out, residual, x, mask, stream);
  }
  return cpu::residual_add(out, residual, x, mask, stream);
}

}  // namespace lockstep::kernels
