#include "model/activations.h"

#include "core/range.h"

namespace lockstep {

Tensor Arena::take(DType dtype, Shape shape) {
  constexpr int64_t kCacheLine = 64;
  const int64_t begin = round_up(end_, kCacheLine);
  end_ = begin + shape.size() * lockstep::size_bytes(dtype);
  return buffer_ == nullptr ? Tensor() : buffer_->tensor(dtype, shape, begin);
}

LayerActivations plan_layer(Arena& arena, const ModelConfig& config, DType dtype, int64_t b,
                            int64_t t) {
  const bool gpt2 = config.family == Family::gpt2;
  const int64_t channels = config.hidden_size, ffn = config.ffn_size;
  LayerActivations a;
  if (gpt2) a.attention_mean = arena.take(DType::fp32, {b * t});
  a.attention_scale = arena.take(DType::fp32, {b * t});
  a.normed_input = arena.take(dtype, {b, t, channels});
  a.qkv = arena.take(dtype, {b, t, config.heads().packed()});
  a.attended = arena.take(dtype, {b, t, config.num_heads * config.head_dim});
  a.lse = arena.take(DType::fp32, {b, config.num_heads, t});
  a.middle = arena.take(dtype, {b, t, channels});
  if (gpt2) a.ffn_mean = arena.take(DType::fp32, {b * t});
  a.ffn_scale = arena.take(DType::fp32, {b * t});
  a.normed_middle = arena.take(dtype, {b, t, channels});
  a.up = arena.take(dtype, {b, t, gpt2 ? ffn : 2 * ffn});
  a.activated = arena.take(dtype, {b, t, ffn});
  return a;
}

namespace {

LayerGradients plan_gradients(Arena& arena, const ModelConfig& config, DType dtype, int64_t b,
                              int64_t t) {
  const bool gpt2 = config.family == Family::gpt2;
  LayerGradients d;
  d.residual = arena.take(dtype, {b, t, config.hidden_size});
  d.branch = arena.take(dtype, {b, t, config.hidden_size});
  d.qkv = arena.take(dtype, {b, t, config.heads().packed()});
  d.attended = arena.take(dtype, {b, t, config.num_heads * config.head_dim});
  d.up = arena.take(dtype, {b, t, gpt2 ? config.ffn_size : 2 * config.ffn_size});
  if (!gpt2) d.activated = arena.take(dtype, {b, t, config.ffn_size});
  return d;
}

}  // namespace

void plan(Activations& activations, Arena& arena, const ModelConfig& config, DType dtype, Keep keep,
          int64_t b, int64_t t) {
  const Shape residual = {b, t, config.hidden_size};
  activations.layers.resize(config.num_layers);
  LayerActivations shared;
  if (keep != Keep::everything) shared = plan_layer(arena, config, dtype, b, t);
  Tensor stream = arena.take(dtype, residual);
  for (LayerActivations& layer : activations.layers) {
    layer = keep == Keep::everything ? plan_layer(arena, config, dtype, b, t) : shared;
    layer.input = stream;
    if (keep != Keep::nothing) stream = arena.take(dtype, residual);
    layer.output = stream;
  }
  if (config.family == Family::gpt2) activations.final_mean = arena.take(DType::fp32, {b * t});
  activations.final_scale = arena.take(DType::fp32, {b * t});
  activations.final_normed = arena.take(dtype, residual);
  activations.losses = arena.take(DType::fp32, {b * t});
  if (keep != Keep::nothing) {
    activations.gradients = plan_gradients(arena, config, dtype, b, t);
  }
}

}  // namespace lockstep
