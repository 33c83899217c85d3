#pragma once
#include <vector>

#include "core/device.h"
#include "core/tensor.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/parameter_views.h"

// The forward pass of one growing sequence: each call appends tokens, attends to all before them
// through a cache of keys and values, and gives the logits of what comes next.
namespace lockstep {

// Keys (after RoPE) and values of a sequence's tokens so far. Movable only.
class KvCache {
 public:
  // Room for `capacity` tokens, zeroed, in compute precision.
  KvCache(const ModelConfig& config, int64_t capacity, DType dtype, Device device = Device::cpu);

  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }  // tokens held
  // Forgets all but the first `length` tokens; at most length().
  void truncate(int64_t length);

  Tensor keys(int64_t layer) const { return layer_slice(keys_, layer); }      // (K, capacity, D)
  Tensor values(int64_t layer) const { return layer_slice(values_, layer); }  // (K, capacity, D)
  int64_t size_bytes() const { return keys_.size_bytes() + values_.size_bytes(); }

 private:
  friend class Decoder;
  static Tensor layer_slice(const Buffer& buffer, int64_t layer);
  Buffer keys_, values_;  // (L, K, capacity, D)
  int64_t capacity_, length_ = 0;
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

  // Appends tokens (N) int32, in the CPU's memory, to the cache's sequence. Writes the states after
  // the final norm of the last M of them to hidden (M, C), 1 <= M <= N, in compute precision.
  // Throws std::logic_error when the cache or the context length has no room for N more, or on a
  // token outside the vocabulary.
  void forward(const Tensor& tokens, KvCache& cache, const Tensor& hidden);

  // logits (M, V) fp32, in the CPU's memory, of the token after each state of hidden (M, C).
  void logits(const Tensor& logits, const Tensor& hidden);

  const ModelConfig& config() const { return config_; }

 private:
  void forward_chunk(const Tensor& tokens, KvCache& cache);

  const ModelConfig config_;
  const ModelParameters parameters_;
  const DType dtype_;
  const int64_t chunk_;
  Buffer rope_table_, arena_, tokens_, logits_;
  Activations activations_;
  Stream stream_;  // ends before the memory that its work uses
};

}  // namespace lockstep
