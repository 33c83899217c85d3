#include "kernels/cudnn_attention.h"

// For a build without cuDNN, and for the emulated device: it never applies.
namespace lockstep::kernels::cuda {

std::string cudnn_obstacle(std::string*) { return "this build is without cuDNN"; }

std::string cudnn_attention_obstacle(const AttentionShape&) { return cudnn_obstacle(); }

bool cudnn_attention_forward(const Tensor&, const Tensor&, const Tensor&, const Heads&,
                             const DropoutMask&, Stream&) {
  return false;
}

bool cudnn_attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              const Tensor&, const Heads&, const DropoutMask&, Stream&) {
  return false;
}

int64_t cudnn_attention_workspace_bytes(const AttentionShape&) { return 0; }

int64_t cudnn_attention_configurations(const AttentionShape&, AttentionPass, std::string_view,
                                       int) {
  throw DeviceError("{}", cudnn_obstacle());
}

}  // namespace lockstep::kernels::cuda
