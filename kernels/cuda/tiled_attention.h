#pragma once
#include "kernels/attention.h"

// Attention by our own kernels, fp32 inside whatever the storage, for heads of any size up to 256,
// with dropout or without. cuda::attention_forward and cuda::attention_backward call them where
// cuDNN does not apply.
namespace lockstep::kernels::cuda {
decltype(cpu::attention_forward) tiled_attention_forward;
decltype(cpu::attention_backward) tiled_attention_backward;
}  // namespace lockstep::kernels::cuda
