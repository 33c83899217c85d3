#include "trainer/adamw.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/profile.h"
#include "kernels/reduce.h"

namespace lockstep {
namespace {

// Cuts a range where parameters begin that are treated otherwise.
std::vector<std::pair<Range, bool>> alike(const ParameterTable& table, const Range& range) {
  std::vector<std::pair<Range, bool>> runs;  // and whether weights decay
  for (const Parameter& parameter : table.parameters()) {
    const Range part{std::max(parameter.offset, range.begin), std::min(parameter.end(), range.end)};
    if (part.size() <= 0) continue;
    if (!runs.empty() && runs.back().second == parameter.decay) {
      runs.back().first.end = part.end;
    } else {
      runs.emplace_back(part, parameter.decay);
    }
  }
  return runs;
}

}  // namespace

AdamW::Piece AdamW::Piece::slice(const Range& part) const {
  const auto cut = [&](const Tensor& tensor) {
    return tensor.slice(part.begin - range.begin, part.end - range.begin);
  };
  return {part, cut(weights), cut(master), cut(exp_avg), cut(exp_avg_sq)};
}

AdamW::AdamW(const ParameterTable& table, const OptimizerConfig& config, const Tensor& weights,
             const std::vector<Range>& ranges)
    : config_(config) {
  CHECK(weights.size() == table.size());
  const bool own_master = weights.dtype() != DType::fp32;
  int64_t size = 0;
  for (const Range& range : ranges) size += range.size();
  memory_ = Buffer(DType::fp32, {(own_master ? 3 : 2) * size}, weights.device());
  int64_t taken = 0;
  const auto take = [&](int64_t count) {
    taken += count;
    return memory_.tensor().slice(taken - count, taken);
  };
  for (const Range& range : ranges) {
    Piece piece;
    piece.range = range;
    piece.weights = weights.slice(range.begin, range.end);
    piece.master = own_master ? take(range.size()) : piece.weights;
    piece.exp_avg = take(range.size());
    piece.exp_avg_sq = take(range.size());
    pieces_.push_back(piece);
    for (const auto& [part, decay] : alike(table, range)) {
      runs_.push_back({piece.slice(part), decay});
    }
  }
}

void AdamW::publish_weights(Stream& stream) {
  for (const Piece& piece : pieces_) {
    if (piece.weights.data() != piece.master.data()) {
      kernels::cast(piece.weights, piece.master, stream);
    }
  }
}

kernels::AdamStep AdamW::next_step(double learning_rate, int64_t updates_done) const {
  const auto updates = static_cast<double>(updates_done + 1);
  return {.learning_rate = static_cast<float>(learning_rate),
          .bias_correction1 = static_cast<float>(1 - std::pow(config_.beta1, updates)),
          .bias_correction2 = static_cast<float>(1 - std::pow(config_.beta2, updates))};
}

void AdamW::update(const Tensor& gradients, const kernels::AdamStep* step, Stream& stream) {
  const ProfileScope scope(Span::Kind::stage, "update");
  kernels::AdamConstants constants;
  constants.beta1 = static_cast<float>(config_.beta1);
  constants.beta2 = static_cast<float>(config_.beta2);
  constants.epsilon = static_cast<float>(config_.epsilon);
  constants.decoupled = config_.kind == OptimizerKind::adamw;
  constants.clip_value = static_cast<float>(config_.clip_value);
  for (const Run& run : runs_) {
    const Piece& state = run.state;
    constants.weight_decay = run.decay ? static_cast<float>(config_.weight_decay) : 0.0f;
    kernels::adam_update(state.weights, state.master, state.exp_avg, state.exp_avg_sq,
                         gradients.slice(state.range.begin, state.range.end), constants, step,
                         stream);
  }
}

}  // namespace lockstep
