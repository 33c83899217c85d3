#include "trainer/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace lockstep {
namespace {

ModelConfig small_model() {
  ModelConfig config;
  config.vocab_size = 13;
  config.context_length = 7;
  config.num_layers = 2;
  config.hidden_size = 12;
  config.num_heads = config.num_kv_heads = 3;
  config.head_dim = 4;
  config.ffn_size = 20;
  return config;
}

// The published algorithms in float64, one parameter at a time.
struct Reference {
  const OptimizerConfig& config;
  std::vector<double> w, m, v;

  void update(const std::vector<bool>& decay, const std::vector<float>& gradient, double factor,
              double rate, int64_t t) {
    for (size_t i = 0; i < w.size(); i++) {
      double g = gradient[i] * factor;
      if (config.clip_value > 0) g = std::clamp(g, -config.clip_value, config.clip_value);
      const double lambda = decay[i] ? config.weight_decay : 0;
      if (config.kind == OptimizerKind::adam) g += lambda * w[i];
      m[i] = config.beta1 * m[i] + (1 - config.beta1) * g;
      v[i] = config.beta2 * v[i] + (1 - config.beta2) * g * g;
      if (config.kind == OptimizerKind::adamw) w[i] -= rate * lambda * w[i];
      const double t_done = static_cast<double>(t);
      w[i] -= rate * (m[i] / (1 - std::pow(config.beta1, t_done))) /
              (std::sqrt(v[i] / (1 - std::pow(config.beta2, t_done))) + config.epsilon);
    }
  }
};

struct AdamWTest : testing::Test {
  ParameterTable table{small_model()};
  int64_t size = table.size();
  std::mt19937 random{7};
  std::normal_distribution<float> normal;

  std::vector<bool> decay() const {
    std::vector<bool> flags(static_cast<size_t>(size));
    for (const Parameter& p : table.parameters()) {
      for (int64_t i = p.offset; i < p.end(); i++) flags[static_cast<size_t>(i)] = p.decay;
    }
    return flags;
  }

  Stream stream;

  // Ten updates of [begin, end) against the reference over everything.
  void check(const OptimizerConfig& config, DType dtype, int64_t begin, int64_t end) {
    Buffer weights(dtype, {size});
    AdamW optimizer(table, config, weights.tensor(), {{begin, end}});
    const float* masters = optimizer.pieces().at(0).master.as<float>();
    Reference reference{config, std::vector<double>(static_cast<size_t>(size)), {}, {}};
    reference.m = reference.v = reference.w;
    for (int64_t i = 0; i < size; i++) {
      const float start = 0.1f * normal(random);
      reference.w[static_cast<size_t>(i)] = start;
      if (i >= begin && i < end) optimizer.pieces()[0].master.as<float>()[i - begin] = start;
    }
    optimizer.publish_weights(stream);
    std::vector<float> gradient(static_cast<size_t>(size));
    for (int64_t updates = 0; updates < 10; updates++) {
      for (float& g : gradient) g = 64 * normal(random);
      const double rate = 0.01 / static_cast<double>(updates + 1);
      kernels::AdamStep step = optimizer.next_step(rate, updates);
      step.gradient_factor = 1.0f / 64;
      optimizer.update(Tensor(gradient.data(), DType::fp32, {size}), &step, stream);
      reference.update(decay(), gradient, 1.0 / 64, rate, updates + 1);
    }
    // Each update moves a weight of at most about 0.5 by at most about 0.01 * sqrt(10), with some
    // ten fp32 roundings of relative 2^-24 in the move and one in the sum; over ten updates less
    // than 10 * (0.03 * 10 + 0.5) * 2^-24 = 5e-7.
    for (int64_t i = begin; i < end; i++) {
      const float master = masters[i - begin];
      ASSERT_NEAR(master, reference.w[static_cast<size_t>(i)], 5e-7) << i;
      with_float_type(dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        ASSERT_EQ(to_float(weights.tensor().as<T>()[i]), to_float(from_float<T>(master)));
      });
    }
  }
};

TEST_F(AdamWTest, AdamWFollowsFloat64) { check({}, DType::fp32, 0, size); }

TEST_F(AdamWTest, AdamFollowsFloat64) {
  check({.kind = OptimizerKind::adam, .beta2 = 0.999, .weight_decay = 0.3}, DType::fp32, 0, size);
}

TEST_F(AdamWTest, ClipsByValue) { check({.clip_value = 0.4}, DType::fp32, 0, size); }

TEST_F(AdamWTest, NarrowWeightsAreTheRoundedMaster) {
  check({}, DType::bf16, 0, size);
  check({}, DType::fp16, 0, size);
}

TEST_F(AdamWTest, ASliceMayBeginAndEndInsideAParameter) {
  check({}, DType::bf16, size / 3 + 1, size - 5);
  check({}, DType::fp32, 3, size / 2);
}

TEST_F(AdamWTest, DecayIsForMatricesOnly) {
  Buffer weights(DType::fp32, {size}), gradients(DType::fp32, {size});
  AdamW optimizer(table, {.weight_decay = 0.5}, weights.tensor(), {{0, size}});
  for (int64_t i = 0; i < size; i++) weights.tensor().as<float>()[i] = 1;
  const kernels::AdamStep step = optimizer.next_step(0.5, 0);
  optimizer.update(gradients.tensor(), &step, stream);
  for (const Parameter& p : table.parameters()) {
    for (int64_t i = p.offset; i < p.end(); i++) {
      ASSERT_EQ(weights.tensor().as<float>()[i], p.decay ? 0.75f : 1.0f) << p.name;
    }
  }
}

}  // namespace
}  // namespace lockstep
