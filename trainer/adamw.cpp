#include "trainer/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/adam.h"
#include "kernels/reduce.h"

namespace lockstep {

AdamW::AdamW(const ParameterTable& table, const OptimizerConfig& config, const Tensor& weights,
             int64_t begin, int64_t end)
    : config_(config), begin_(begin), end_(end), weights_(weights.slice(begin, end)) {
  CHECK(weights.size() == table.size());
  for (const Parameter& parameter : table.parameters()) {
    const int64_t from = std::max(parameter.offset, begin) - begin;
    const int64_t to = std::min(parameter.end(), end) - begin;
    if (from >= to) continue;
    if (!runs_.empty() && runs_.back().decay == parameter.decay) {
      runs_.back().end = to;
    } else {
      runs_.push_back({from, to, parameter.decay});
    }
  }
  const auto flat = [&](Buffer& memory) {
    memory = Buffer(DType::fp32, {end - begin});
    return memory.tensor();
  };
  master_ = weights.dtype() == DType::fp32 ? weights_ : flat(master_memory_);
  exp_avg_ = flat(exp_avg_memory_);
  exp_avg_sq_ = flat(exp_avg_sq_memory_);
}

void AdamW::publish_weights() {
  Stream stream;
  if (weights_.data() != master_.data()) kernels::cast(weights_, master_, stream);
}

void AdamW::update(const GradientSlice& gradients, double gradient_factor, double learning_rate,
                   int64_t updates_done) {
  CHECK(gradients.begin == begin_ && gradients.end == end_);
  const auto updates = static_cast<double>(updates_done + 1);
  kernels::AdamStep step;
  step.learning_rate = static_cast<float>(learning_rate);
  step.beta1 = static_cast<float>(config_.beta1);
  step.beta2 = static_cast<float>(config_.beta2);
  step.epsilon = static_cast<float>(config_.epsilon);
  step.decoupled = config_.kind == OptimizerKind::adamw;
  step.bias_correction1 = static_cast<float>(1 - std::pow(config_.beta1, updates));
  step.bias_correction2 = static_cast<float>(1 - std::pow(config_.beta2, updates));
  step.gradient_factor = static_cast<float>(gradient_factor);
  step.clip_value = static_cast<float>(config_.clip_value);
  Stream stream;
  for (const Run& run : runs_) {
    step.weight_decay = run.decay ? static_cast<float>(config_.weight_decay) : 0.0f;
    kernels::adam_update(weights_.slice(run.begin, run.end), master_.slice(run.begin, run.end),
                         exp_avg_.slice(run.begin, run.end), exp_avg_sq_.slice(run.begin, run.end),
                         gradients.gradients.slice(run.begin, run.end), step, stream);
  }
}

}  // namespace lockstep
