#include "inference/quantize.h"

#include <algorithm>

#include "core/check.h"
#include "inference/rounding.h"
#include "inference/weights.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"
#include "model/activations.h"
#include "model/layer.h"

namespace lockstep {
namespace {

// Sums of x x^T, by batches in fp32, over the batches in float64.
class Hessian {
 public:
  explicit Hessian(int64_t inputs)
      : partial_(DType::fp32, {inputs, inputs}), sum_(inputs * inputs) {}

  void add(const Tensor& x, Stream& stream) {
    const Tensor rows = x.reshape({x.rows(), x.cols()});
    kernels::set_zero(partial_.tensor(), stream);
    kernels::linear_backward_weight(partial_.tensor(), Tensor(), rows, rows, stream);
    const auto* values = partial_.tensor().as<float>();
    for (size_t i = 0; i < sum_.size(); i++) sum_[i] += static_cast<double>(values[i]);
  }
  std::vector<double> take() { return std::move(sum_); }

 private:
  Buffer partial_;
  std::vector<double> sum_;
};

// One matrix of a layer: what it is multiplied with, and where its quantized form goes.
struct Place {
  Tensor LayerParameters::*weight;
  kernels::QuantizedMatrix QuantizedLayer::*quantized;
  Tensor LayerActivations::*input;
};
// In the order of the table, which is that of the forward pass.
constexpr Place kPlaces[] = {
    {&LayerParameters::qkv_weight, &QuantizedLayer::qkv, &LayerActivations::normed_input},
    {&LayerParameters::output_weight, &QuantizedLayer::output, &LayerActivations::attended},
    {&LayerParameters::up_weight, &QuantizedLayer::up, &LayerActivations::normed_middle},
    {&LayerParameters::down_weight, &QuantizedLayer::down, &LayerActivations::activated}};

// Goes through a model layer by layer, with the states of all calibration tokens.
class Calibration {
 public:
  Calibration(const ModelConfig& config, const ModelParameters& parameters,
              std::span<const int32_t> tokens)
      : config_(config), length_(config.context_length) {
    windows_ = static_cast<int64_t>(tokens.size()) / length_;
    batch_ = std::min(windows_, std::max<int64_t>(1, kTokensAtOnce / length_));
    CHECK(windows_ >= 1 && windows_ * length_ == static_cast<int64_t>(tokens.size()),
          "{} tokens in windows of {}", tokens.size(), length_);
    // Tensors are views that may be written; the embedding only reads this one.
    const Tensor ids(const_cast<int32_t*>(tokens.data()), DType::int32, {windows_, length_});
    states_ = Buffer(DType::fp32, {windows_, length_, config.hidden_size});
    kernels::embedding_forward(states_.tensor(), ids, parameters.tokens, parameters.positions, 0,
                               stream_);
    if (config.family == Family::llama) {
      rope_table_ = rope_table(config, length_, Device::cpu);
    }
    output_ = Buffer(DType::fp32, {batch_, length_, config.hidden_size});
    Arena measured;
    plan_layer(measured, config, DType::fp32, batch_, length_);
    arena_ = Buffer(measured.size_bytes());
  }

  // What the layer, as far as it is quantized, multiplies the matrix at `place` with.
  std::vector<double> hessian(const LayerParameters& layer, const Place& place) {
    Hessian sum((layer.*place.weight).cols());
    for_batches(layer, false, [&](const LayerActivations& a) { sum.add(a.*place.input, stream_); });
    return sum.take();
  }

  // The states after the layer take the place of those before it.
  void advance(const LayerParameters& layer) {
    for_batches(layer, true, [](const LayerActivations&) {});
  }

 private:
  static constexpr int64_t kTokensAtOnce = 4096;

  template <class F>
  void for_batches(const LayerParameters& layer, bool in_place, F f) {
    for (int64_t first = 0; first < windows_; first += batch_) {
      const int64_t count = std::min(batch_, windows_ - first);
      Arena arena(arena_);
      LayerActivations a = plan_layer(arena, config_, DType::fp32, count, length_);
      a.input = states_.tensor().slice(first, first + count);
      a.output = in_place ? a.input : output_.tensor().slice(0, count);
      layer_forward(config_, layer, a, rope_table_.tensor(), LayerDropout(), stream_);
      f(a);
    }
  }

  const ModelConfig& config_;
  const int64_t length_;
  int64_t windows_, batch_;
  Buffer states_, output_, rope_table_, arena_;
  Stream stream_;
};

}  // namespace

std::vector<int32_t> spread_windows(const TokenStream& split, int64_t length, int64_t count) {
  if (split.size() < length) {
    throw DataError("the split has {} tokens, fewer than the {} of the model's context",
                    split.size(), length);
  }
  const int64_t windows =
      std::clamp<int64_t>((count + length - 1) / length, 1, split.size() / length);
  std::vector<int32_t> tokens(windows * length);
  for (int64_t i = 0; i < windows; i++) {
    const int64_t begin = split.size() / windows * i;
    split.copy(begin, length, tokens.data() + i * length);
  }
  return tokens;
}

std::vector<QuantizedBuffer> quantize(const Checkpoint& checkpoint,
                                      const Quantization& quantization,
                                      std::span<const int32_t> calibration,
                                      const std::function<void(int64_t)>& on_layer) {
  checkpoint.require_whole_weights("quantization");
  const ModelConfig& config = checkpoint.info().model;
  validate(quantization, config);
  const Weights weights(checkpoint, DType::fp32);
  std::optional<Calibration> inputs;
  if (quantization.calibrated) inputs.emplace(config, weights.parameters(), calibration);
  std::vector<QuantizedBuffer> matrices;
  for (int64_t n = 0; n < config.num_layers; n++) {
    LayerParameters layer = weights.parameters().layers[n];
    for (const Place& place : kPlaces) {
      const Tensor& weight = layer.*place.weight;
      const auto& matrix = matrices.emplace_back(weight.shape(), quantization).matrix();
      if (inputs) {
        round_for_inputs(matrix, weight, inputs->hessian(layer, place));
      } else {
        round_to_nearest(matrix, weight);
      }
      layer.quantized.*place.quantized = matrix;
    }
    if (inputs) inputs->advance(layer);
    if (on_layer) on_layer(n);
  }
  return matrices;
}

}  // namespace lockstep
