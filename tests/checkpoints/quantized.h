#pragma once
#include <random>

#include "model/quantization.h"
#include "tests/checkpoints/support.h"

// A small model whose matrices can be quantized, and random matrices for it.
namespace lockstep {

inline constexpr Quantization kEightBits{.bits = 8, .group_size = 32};

inline ModelConfig quantizable_gpt2() {
  ModelConfig config = tiny_gpt2();
  config.hidden_size = 32;
  config.num_heads = config.num_kv_heads = 2;
  config.head_dim = 16;
  config.ffn_size = 64;
  return config;
}

// The newest checkpoint of a run in `folder`, which is made.
inline Checkpoint checkpoint_in(const fs::path& folder, const ModelConfig& model) {
  save_as_workers(folder / "run", info_of(model, 7), {0, ParameterTable(model).size()});
  return Checkpoint::open(folder / "run");
}

inline std::vector<QuantizedBuffer> some_matrices(const ModelConfig& model,
                                                  const Quantization& quantization) {
  std::vector<QuantizedBuffer> matrices;
  std::mt19937 random(5);
  const ParameterTable table(model);
  for (const Parameter& parameter : table.parameters()) {
    if (!is_quantized(parameter)) continue;
    const auto& m = matrices.emplace_back(parameter.shape, quantization).matrix();
    for (int64_t i = 0; i < m.outputs * m.words_of_row(); i++) m.words[i] = random();
    for (int64_t i = 0; i < m.outputs * m.groups(); i++) {
      m.scales[i] = static_cast<float>(random()) * 1e-12f;
      m.zeros[i] = static_cast<uint8_t>(random() % (1u << quantization.bits));
    }
  }
  return matrices;
}

// All bytes of a quantized matrix.
inline std::string bytes_of(const kernels::QuantizedMatrix& m) {
  const auto part = [](const void* data, int64_t size) {
    return std::string(static_cast<const char*>(data), static_cast<size_t>(size));
  };
  const int64_t groups = m.outputs * m.groups();
  return part(m.words, 4 * m.outputs * m.words_of_row()) + part(m.scales, 4 * groups) +
         part(m.zeros, groups);
}

// Every matrix of a quantized checkpoint, as bytes, after reading what is whole too.
inline std::vector<std::string> read_quantized(const Checkpoint& checkpoint) {
  std::vector<std::string> matrices;
  const auto& quantization = checkpoint.info().quantization;
  for (const Parameter& parameter : checkpoint.table().parameters()) {
    if (quantization && is_quantized(parameter)) {
      const QuantizedBuffer buffer(parameter.shape, *quantization);
      checkpoint.read(parameter, buffer.matrix());
      matrices.push_back(bytes_of(buffer.matrix()));
    } else {
      read_floats(checkpoint, FlatKind::weights, parameter.offset, parameter.end());
    }
  }
  return matrices;
}

}  // namespace lockstep
