#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "data/dataset.h"
#include "model/quantization.h"

namespace lockstep {

// About `count` tokens of a split, in windows of `length` that are spread over it evenly; at most
// all of it. Throws DataError when it is shorter than one window.
std::vector<int32_t> spread_windows(const TokenStream& split, int64_t length, int64_t count);

// The matrices of a model that are quantized, in the order of its table. With quantization
// .calibrated each is rounded for the inputs that it has on `calibration`, whole windows of the
// model's context length: layer by layer, and within a layer matrix by matrix, each after those
// that its inputs come from. Without it every weight is rounded to the nearest, and `calibration`
// is not used. Calls `on_layer`, if there is one, after each layer. Throws UsageError when the
// model's sizes do not fit, DataError when a weight is not finite. CPU only.
std::vector<QuantizedBuffer> quantize(const Checkpoint& checkpoint,
                                      const Quantization& quantization,
                                      std::span<const int32_t> calibration,
                                      const std::function<void(int64_t layer)>& on_layer = nullptr);

}  // namespace lockstep
