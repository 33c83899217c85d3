#pragma once
#include <span>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"
#include "kernels/attention.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/kv_pages.h"
#include "model/parameter_views.h"

// The forward pass of growing sequences: each call appends tokens to some of them, attends to all
// before them through their cached keys and values, and gives the states that the logits of what
// comes next are made of.
namespace lockstep {

// What a call appends to one sequence, at least one token.
struct NewTokens {
  KvSequence* sequence = nullptr;
  std::span<const int32_t> tokens;
  int64_t wanted = 1;  // the states of so many of the last of them
};

// Not for several threads at once: it holds the activations of the call.
class Decoder {
 public:
  // Reads `weights`, a flat buffer of the model's ParameterTable in compute precision, which must
  // outlive it, and computes on the device that holds it. Works on at most `chunk` tokens at a
  // time: activations need chunk * (about 8 C + 3 F) elements.
  Decoder(const ModelConfig& config, const Tensor& weights, int64_t chunk = 128);

  // The same of parameters that stand apart, the layers' matrices quantized or not.
  Decoder(const ModelConfig& config, const ModelParameters& parameters, int64_t chunk = 128);

  // Appends tokens to each sequence of the batch, all different ones. Writes the states after the
  // final norm of those that are wanted, in order, to hidden (M, C), in compute precision.
  //
  // On the CPU, a token's state and its keys and values have bits that depend on `rows` and on the
  // tokens of its sequence (and the `rows` that those went by) alone: not on the rest of the batch,
  // on its place there, on how a sequence is parted into calls, or on the number of threads.
  //
  // Throws std::logic_error when the context length has no room for the tokens, or on a token
  // outside the vocabulary; the sequences then hold what they held before.
  void forward(std::span<const NewTokens> batch, kernels::Rows rows, const Tensor& hidden);

  // logits (M, V) fp32, in the CPU's memory, of the token after each state of hidden (M, C). A
  // row's bits depend on that state alone, on the CPU.
  void logits(const Tensor& logits, const Tensor& hidden);

  const ModelConfig& config() const { return config_; }

 private:
  // Part of a sequence's new tokens, as many as fit into one pass with those of others.
  struct Piece {
    const NewTokens* of;
    int64_t begin, end, position;  // tokens [begin, end) of it, the first at `position`
  };
  void forward_pieces(std::span<const Piece> pieces, kernels::Rows rows);

  const ModelConfig config_;
  const ModelParameters parameters_;
  const DType dtype_;
  const int64_t chunk_;
  Buffer rope_table_, arena_, tokens_, logits_;
  Activations activations_;
  Stream stream_;  // ends before the memory that its work uses
};

}  // namespace lockstep
