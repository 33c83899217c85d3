#include "model/decoder.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/attention.h"
#include "kernels/classifier.h"
#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "model/layer.h"

namespace lockstep {

KvCache::KvCache(const ModelConfig& config, int64_t capacity, DType dtype, Device device)
    : keys_(dtype, {config.num_layers, config.num_kv_heads, capacity, config.head_dim}, device),
      values_(dtype, {config.num_layers, config.num_kv_heads, capacity, config.head_dim}, device),
      capacity_(capacity) {
  CHECK(capacity >= 1);
}

void KvCache::truncate(int64_t length) {
  CHECK(0 <= length && length <= length_, "{} of {}", length, length_);
  length_ = length;
}

Tensor KvCache::layer_slice(const Buffer& buffer, int64_t layer) {
  const Tensor all = buffer.tensor();
  return all.slice(layer, layer + 1).reshape({all.dim(1), all.dim(2), all.dim(3)});
}

Decoder::Decoder(const ModelConfig& config, const Tensor& weights, int64_t chunk)
    : Decoder(config, parameter_views(ParameterTable(config), weights), chunk) {}

Decoder::Decoder(const ModelConfig& config, const ModelParameters& parameters, int64_t chunk)
    : config_(config),
      parameters_(parameters),
      dtype_(parameters.tokens.dtype()),
      chunk_(std::min(chunk, config.context_length)),
      tokens_(DType::int32, {chunk_}, parameters.tokens.device()),
      stream_(parameters.tokens.device()) {
  CHECK(chunk >= 1);
  if (config_.family == Family::llama) {
    rope_table_ = rope_table(config_, config_.context_length, stream_.device());
  }
  Arena measured;
  plan(activations_, measured, config_, dtype_, Keep::nothing, 1, chunk_);
  arena_ = Buffer(measured.size_bytes(), stream_.device());
}

// From tokens (1, n) to activations_.final_normed (1, n, C).
void Decoder::forward_chunk(const Tensor& tokens, KvCache& cache) {
  const int64_t position = cache.length(), count = tokens.size();
  Arena arena(arena_);
  plan(activations_, arena, config_, dtype_, Keep::nothing, 1, count);
  kernels::embedding_forward(activations_.layers.front().input, tokens, parameters_.tokens,
                             parameters_.positions, position, stream_);
  for (int64_t n = 0; n < config_.num_layers; n++) {
    const LayerActivations& a = activations_.layers[n];
    const Tensor qkv = a.qkv.reshape({count, a.qkv.cols()});
    const Tensor attended = a.attended.reshape({count, a.attended.cols()});
    before_attention(config_, parameters_.layers[n], a, rope_table_.tensor(), position, stream_);
    kernels::attention_with_cache(attended, cache.keys(n), cache.values(n), qkv, config_.heads(),
                                  position, stream_);
    after_attention(config_, parameters_.layers[n], a, LayerDropout(), stream_);
  }
  norm_forward(config_, activations_.final_normed, activations_.final_mean,
               activations_.final_scale, activations_.final_input(), {}, parameters_.final_gain,
               parameters_.final_bias, stream_);
  cache.length_ = position + count;
}

void Decoder::forward(const Tensor& tokens, KvCache& cache, const Tensor& hidden) {
  const int64_t count = tokens.size(), wanted = hidden.rows();
  const int64_t room = std::min(cache.capacity(), config_.context_length) - cache.length();
  CHECK(1 <= count && count <= room, "{} tokens where {} fit", count, room);
  CHECK(1 <= wanted && wanted <= count && hidden.cols() == config_.hidden_size);
  const Tensor all = tokens.reshape({count});
  for (int64_t begin = 0; begin < count; begin += chunk_) {
    const int64_t end = std::min(count, begin + chunk_);
    const Tensor chunk = tokens_.tensor().slice(0, end - begin);
    copy(chunk, all.slice(begin, end), stream_);
    forward_chunk(chunk.reshape({1, end - begin}), cache);
    const int64_t first = std::max(begin, count - wanted);  // of the chunk's wanted states
    if (first >= end) continue;
    const Tensor states = activations_.final_normed.reshape({end - begin, config_.hidden_size});
    const int64_t row = first - (count - wanted);
    kernels::cast(hidden.slice(row, row + end - first), states.slice(first - begin, end - begin),
                  stream_);
  }
}

void Decoder::logits(const Tensor& logits, const Tensor& hidden) {
  if (stream_.device() == Device::cpu) {
    return kernels::classifier_logits(logits, hidden, parameters_.classifier, stream_);
  }
  if (logits_.size_bytes() < logits.size_bytes()) {
    logits_ = Buffer(DType::fp32, logits.shape(), stream_.device());
  }
  const Tensor there = logits_.tensor(DType::fp32, logits.shape());
  kernels::classifier_logits(there, hidden, parameters_.classifier, stream_);
  copy(logits, there, stream_);
  stream_.synchronize();
}

}  // namespace lockstep
