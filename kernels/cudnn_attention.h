#pragma once
#include <string>
#include <string_view>

#include "kernels/attention.h"

// Attention by cuDNN's fused kernels, on tensor cores: causal, bf16 and fp16, grouped queries, on
// the packed layout of attention.h. The same formula, and the same lse: cuDNN's "stats" are the
// natural logarithm of the sum of the exponentials of the scaled scores, fp32, (B, H, T, 1), so
// that either implementation's backward reads what the other's forward left. cuDNN rounds
// probabilities to the operands' type before it multiplies them with values.
//
// The library is loaded when it is first asked for. Where it is missing or too old, where it has no
// plan for a shape, or where the build is without it, the kernels of attention.cu do the work; of
// two devices that a test may link (CMakeLists.txt), the emulated one never has it.
//
// Backward asks for the deterministic algorithm: the same bits at every run of one version of cuDNN
// on GPUs of one kind. As with cuBLASLt, bits may depend on the shape, number of sequences
// included.
namespace lockstep::kernels::cuda {

// All that the choice of a plan depends on.
struct AttentionShape {
  DType dtype = DType::bf16;
  int64_t sequences = 0;  // B
  int64_t tokens = 0;     // T
  Heads heads;
};

enum class AttentionPass { forward, backward };

// Contracts as of cpu::attention_forward and cpu::attention_backward, whose shapes the caller has
// checked. False where cuDNN does not apply: then nothing was enqueued. Each stream's workspace
// (Workspace::kernel) grows to what the plan needs. The first call of a shape builds its plans,
// which takes from milliseconds to seconds and must not be captured in a CUDA graph. Throws
// DeviceError when the enqueuing of a plan fails.
bool cudnn_attention_forward(const Tensor& y, const Tensor& lse, const Tensor& qkv,
                             const Heads& heads, const DropoutMask& mask, Stream& stream);
bool cudnn_attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& y,
                              const Tensor& lse, const Tensor& qkv, const Heads& heads,
                              const DropoutMask& mask, Stream& stream);

// Why cuDNN does not compute the attention of this shape, without dropout, on the current GPU;
// empty where it does. Builds the shape's plans, so that the first step need not.
std::string cudnn_attention_obstacle(const AttentionShape& shape);

// Why there is no cuDNN to use, whatever the shape; empty where there is. Then `name`, where one is
// given, is "cuDNN 9.19.0".
std::string cudnn_obstacle(std::string* name = nullptr);

// About the bytes of scratch memory that the backward pass of this shape takes on an H100, for a
// plan of memory; 0 where cuDNN does not apply or is not built in.
int64_t cudnn_attention_workspace_bytes(const AttentionShape& shape);

// How many engine configurations cuDNN's heuristics name for a pass of this shape on a GPU that
// need not be here: `device` is the JSON by which cuDNN describes devices
// (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION), `architecture` 10 * major + minor of its compute
// capability. Throws DeviceError with cuDNN's words when there is none.
int64_t cudnn_attention_configurations(const AttentionShape& shape, AttentionPass pass,
                                       std::string_view device, int architecture);

}  // namespace lockstep::kernels::cuda
