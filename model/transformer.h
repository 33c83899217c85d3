#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "model/parameter_views.h"

// Letters for shapes, here and in kernels/:
//   B sequences of the micro-batch   T tokens of a sequence     N = B * T
//   C hidden size   H heads   K key-value heads   D head size   F feed-forward size
//   L layers        V vocabulary     P parameters
namespace lockstep {

// Sequences to learn from. targets[b,t] is the token after tokens[b,t]; -1: not counted.
struct Batch {
  Tensor tokens;   // (B, T) int32
  Tensor targets;  // (B, T) int32
  // With the next: keys dropout's random numbers. In the memory of the device that computes.
  const uint64_t* step = nullptr;
  uint32_t first_sequence = 0;  // place in the global batch of the first sequence here

  // Sequences [begin, end) of it.
  Batch slice(int64_t begin, int64_t end) const {
    return {tokens.slice(begin, end), targets.slice(begin, end), step,
            first_sequence + static_cast<uint32_t>(begin)};
  }
};

// Called by backward, on the calling thread, when the gradients of a group (ParameterTable) are
// complete: L + 1 first, then L .. 1, then 0.
using GroupCallback = std::function<void(int group)>;

// A GPT-2- or Llama-style transformer: weights in compute precision, gradients in fp32, and the
// activations of one micro-batch. Losses are sums over tokens, in nats.
class Transformer {
 public:
  struct Options {
    Device device = Device::cpu;    // that computes, and holds weights, gradients and activations
    DType precision = DType::fp32;  // of weights, activations and their gradients
    int64_t micro_batch_size = 1;   // B at most
    int64_t sequence_length = 0;    // T at most; 0: the context length
    bool training = true;           // room for gradients and for what backward needs
    bool recompute = false;         // keep only each layer's input, redo the layer in backward
    uint64_t seed = 0;              // of dropout
    int64_t padded_size = 0;  // elements of each flat buffer, zeros behind the parameters; 0: P
  };
  Transformer(const ModelConfig& config, const Options& options);
  // Computes with parameters of somebody else, in options.precision and on options.device, which
  // must outlive it; the layers' matrices may be quantized. Not for training; without weights().
  Transformer(const ModelConfig& config, const Options& options, const ModelParameters& parameters);
  ~Transformer();

  const ModelConfig& config() const;
  const Options& options() const;  // with the sequence length that holds
  const ParameterTable& table() const;
  // What the model enqueues its work in. Weights and gradients are safe to touch in this stream, or
  // once it has been synchronised.
  Stream& stream();
  Tensor weights() const;         // (P) in options.precision; whoever trains keeps the master copy
  Tensor gradients() const;       // (P) fp32; training only
  Tensor padded_weights() const;  // (padded_size), the parameters first
  Tensor padded_gradients() const;  // the same
  void zero_gradients();

  // Forward pass with dropout, and the gradient of gradient_scale * loss at the output layer (its
  // logits never stand in memory whole): the gradient of the output layer's weight is added here.
  // *loss_sum += the losses of the batch's tokens. All of it only enqueues; batch, gradient_scale
  // and loss_sum are in the memory of the device that computes, and must live until backward has
  // run.
  void forward(const Batch& batch, const float* gradient_scale, double* loss_sum);

  // Adds the gradients of the batch that forward saw last; once for each forward, and before the
  // next losses().
  void backward(const GroupCallback& group_ready);

  // Without dropout or gradients: the loss of each token, written to losses (B, T) fp32. Both are
  // in the CPU's memory.
  void losses(const Batch& batch, const Tensor& losses);

  // Bytes of the device's memory, by what they are for. The CPU's kernels have scratch memory of
  // their own, which is not counted.
  struct Memory {
    int64_t weights = 0, gradients = 0, activations = 0;  // activations: with RoPE's table
    int64_t workspace = 0;  // what kernels ask for at the first step; products may take less
    int64_t inputs = 0;     // the batch that losses() was given
    int64_t total() const { return weights + gradients + activations + workspace + inputs; }
  };
  Memory memory() const;
  // The same of a model that is not made, without allocating anything.
  static Memory planned_memory(const ModelConfig& config, const Options& options);

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep
