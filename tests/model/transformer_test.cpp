#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "core/thread_pool.h"
#include "kernels/reduce.h"
#include "tests/model/golden.h"
#include "tests/model/reference.h"

namespace lockstep {
namespace {

using kernels::Activation;
using testing::Reference;
using testing::TokenBatch;

ModelConfig small(Family family) {
  ModelConfig config = family_defaults(family);
  config.vocab_size = 19;
  config.context_length = 12;
  config.num_layers = 2;
  config.hidden_size = 24;
  config.num_heads = 4;
  config.num_kv_heads = family == Family::gpt2 ? 4 : 2;
  config.ffn_size = 20;
  fill_in_sizes(config);
  return config;
}

// Random tokens, one target in eight not counted.
TokenBatch random_batch(const ModelConfig& config, int64_t sequences, int64_t length) {
  std::mt19937 random(5);
  std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(config.vocab_size) - 1);
  std::vector<int32_t> tokens(sequences * length), targets(sequences * length);
  for (int32_t& t : tokens) t = token(random);
  for (int32_t& t : targets) t = random() % 8 == 0 ? -1 : token(random);
  return {tokens, targets, sequences};
}

// Weights of about the size that keeps activations near 1, so that every nonlinearity bends.
std::vector<float> random_weights(const ModelConfig& config) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  std::vector<float> weights;
  const ParameterTable table(config);
  for (const Parameter& p : table.parameters()) {
    for (int64_t i = 0; i < p.shape.size(); i++) {
      const float deviation = p.shape.rank() == 2 ? 0.25f : 0.2f;
      weights.push_back(deviation * normal(random) + (p.name.ends_with("norm.weight") ? 1 : 0));
    }
  }
  return weights;
}

struct StepResult {
  double loss;
  std::vector<float> gradients;
};
bool same_bits(const StepResult& a, const StepResult& b) {
  return a.loss == b.loss && std::memcmp(a.gradients.data(), b.gradients.data(),
                                         a.gradients.size() * sizeof(float)) == 0;
}

void set_weights(Transformer& model, const std::vector<float>& weights) {
  Stream stream;
  std::vector<float> copy = weights;
  kernels::cast(model.weights(),
                Tensor(copy.data(), DType::fp32, {static_cast<int64_t>(copy.size())}), stream);
}

StepResult step(Transformer& model, const Batch& batch, float gradient_scale = 1) {
  const double loss = testing::forward(model, batch, gradient_scale);
  model.backward(nullptr);
  const auto* begin = model.gradients().as<float>();
  return {loss, {begin, begin + model.gradients().size()}};
}

StepResult run(const ModelConfig& config, const Transformer::Options& options, const Batch& batch) {
  Transformer model(config, options);
  set_weights(model, random_weights(config));
  return step(model, batch);
}

double reference_loss(const ModelConfig& config, const std::vector<double>& weights,
                      const TokenBatch& batch, uint64_t seed, uint64_t step_number) {
  Reference reference(config, weights);
  const auto length = static_cast<size_t>(batch.length());
  double loss = 0;
  for (int64_t b = 0; b < batch.sequences(); b++) {
    reference.set_dropout(config.dropout, seed, step_number, static_cast<uint32_t>(b));
    const auto offset = static_cast<size_t>(b) * length;
    for (double l : reference.losses(std::span(batch.tokens()).subspan(offset, length),
                                     std::span(batch.targets()).subspan(offset, length))) {
      loss += l;
    }
  }
  return loss;
}

// Loss and, in one random direction of each parameter tensor, the slope of the reference by central
// differences. Their error is O(h^2) = 1e-10 of the loss's third derivative (some 100 here), and
// 1e-16 * loss / h = 1e-9 of rounding. The slope from fp32 gradients sums n errors of about 1e-6 of
// the largest entry, n^(1/2) of it together, as the slope itself is n^(1/2) of a typical entry:
// 1e-5 of the gradient's length has room for ten typical entries in the largest.
void expect_gradients_of_reference(const ModelConfig& config) {
  constexpr uint64_t kSeed = 3, kStep = 41;
  constexpr double kH = 1e-5;
  TokenBatch batch = random_batch(config, 2, 9);
  Transformer model(config, {.micro_batch_size = 2, .sequence_length = 9, .seed = kSeed});
  set_weights(model, random_weights(config));
  const StepResult ours = step(model, batch.whole(kStep));
  const std::vector<float> start = random_weights(config);
  std::vector<double> weights(start.begin(), start.end());
  const auto loss = [&] { return reference_loss(config, weights, batch, kSeed, kStep); };
  const double expected = loss();
  EXPECT_NEAR(ours.loss, expected, 1e-6 * expected);

  std::mt19937 random(8);
  std::normal_distribution<double> normal;
  for (const Parameter& p : model.table().parameters()) {
    std::vector<double> direction(p.shape.size());
    for (double& d : direction) d = normal(random);
    const auto move = [&](double by) {
      for (int64_t i = 0; i < p.shape.size(); i++) weights[p.offset + i] += by * direction[i];
      return loss();
    };
    const double up = move(kH), down = move(-2 * kH);
    move(kH);
    double slope = 0, squares = 0;
    for (int64_t i = 0; i < p.shape.size(); i++) {
      const double gradient = ours.gradients[p.offset + i];
      slope += gradient * direction[i];
      squares += gradient * gradient;
    }
    EXPECT_NEAR(slope, (up - down) / (2 * kH), 1e-5 * std::sqrt(squares) + 1e-6) << p.name;
    EXPECT_GT(squares, 1e-6) << p.name << " has no gradient to speak of";
  }
}

class EveryActivation : public ::testing::TestWithParam<Activation> {};

TEST_P(EveryActivation, HasTheGradientsOfTheReference) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    SCOPED_TRACE(name(family));
    ModelConfig config = small(family);
    config.activation = GetParam();
    expect_gradients_of_reference(config);
  }
}
INSTANTIATE_TEST_SUITE_P(All, EveryActivation,
                         ::testing::Values(Activation::relu, Activation::sigmoid, Activation::tanh,
                                           Activation::gelu, Activation::gelu_tanh,
                                           Activation::silu),
                         [](const auto& test) { return std::string(kernels::name(test.param)); });

TEST(Gradients, WithDropoutAreThoseOfTheReference) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    SCOPED_TRACE(name(family));
    ModelConfig config = small(family);
    config.dropout = 0.3f;
    expect_gradients_of_reference(config);
  }
}

TEST(Gradients, OfUnusualShapesAreThoseOfTheReference) {
  ModelConfig config = small(Family::llama);
  config.head_dim = 10;  // heads wider together than the hidden size
  config.tied_embeddings = true;
  config.num_kv_heads = 1;
  config.rope_theta = 100;
  config.rope_scaling = RopeScaling{8, 0.5, 2, 24};
  expect_gradients_of_reference(config);
  config = small(Family::gpt2);
  config.tied_embeddings = false;
  config.num_layers = 1;
  expect_gradients_of_reference(config);
}

// A batch smaller and shorter than the room for it is as one that fills it.
TEST(Transformer, SmallerBatchesUseTheSameMemory) {
  const ModelConfig config = small(Family::llama);
  TokenBatch batch = random_batch(config, 2, 7);
  const StepResult exact =
      run(config, {.micro_batch_size = 2, .sequence_length = 7}, batch.whole());
  const StepResult roomy = run(config, {.micro_batch_size = 5}, batch.whole());
  EXPECT_TRUE(same_bits(exact, roomy));
}

TEST(Transformer, RecomputeGivesTheSameBitsInLessMemory) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    for (const DType precision : {DType::fp32, DType::bf16}) {
      ModelConfig config = small(family);
      config.num_layers = 3;
      config.dropout = 0.2f;
      TokenBatch batch = random_batch(config, 2, 9);
      Transformer::Options options = {.precision = precision, .micro_batch_size = 2};
      const StepResult kept = run(config, options, batch.whole());
      options.recompute = true;
      EXPECT_TRUE(same_bits(kept, run(config, options, batch.whole()))) << name(family);
    }
    ModelConfig deep = small(family);
    deep.num_layers = 10;
    const auto activations = [&](bool recompute) {
      return Transformer(deep, {.recompute = recompute}).memory().activations;
    };
    EXPECT_LT(activations(true), activations(false) / 3);
  }
}

TEST(Transformer, BitsDoNotDependOnThreads) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    for (const DType precision : {DType::fp32, DType::bf16, DType::fp16}) {
      ModelConfig config = small(family);
      config.hidden_size = 96, config.head_dim = 24, config.ffn_size = 200;
      config.vocab_size = 301, config.context_length = 70;
      config.dropout = 0.1f;
      TokenBatch batch = random_batch(config, 3, 70);
      const auto with_threads = [&](int count) {
        set_num_threads(count);
        const StepResult result =
            run(config, {.precision = precision, .micro_batch_size = 3}, batch.whole());
        set_num_threads(1);
        return result;
      };
      const StepResult one = with_threads(1);
      EXPECT_TRUE(same_bits(one, with_threads(2))) << name(family) << name(precision);
      EXPECT_TRUE(same_bits(one, with_threads(3))) << name(family) << name(precision);
    }
  }
}

// Dropout follows the sequences: micro-batches of the same sequences have the same masks. Only the
// order in which gradients add up differs: some units of 2^-24 of the largest entry.
TEST(Transformer, MicroBatchesAddUpToTheBatch) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    ModelConfig config = small(family);
    config.dropout = 0.3f;
    TokenBatch batch = random_batch(config, 4, 9);
    const Transformer::Options options = {.micro_batch_size = 4, .seed = 11};
    const StepResult whole = run(config, options, batch.whole(6));

    Transformer model(config, options);
    set_weights(model, random_weights(config));
    StepResult parts = step(model, batch.slice(0, 1, 6));
    const double first_loss = parts.loss;
    parts = step(model, batch.slice(1, 4, 6));
    EXPECT_NEAR(first_loss + parts.loss, whole.loss, 1e-6 * whole.loss);
    const float largest =
        std::abs(*std::max_element(whole.gradients.begin(), whole.gradients.end(),
                                   [](float a, float b) { return std::abs(a) < std::abs(b); }));
    for (size_t i = 0; i < whole.gradients.size(); i++) {
      ASSERT_NEAR(parts.gradients[i], whole.gradients[i], 2e-6 * largest) << i;
    }

    // Sequence, step and seed each change the mask.
    const double loss = testing::forward(model, batch.slice(0, 1, 6), 1);
    EXPECT_EQ(loss, first_loss);
    Batch moved = batch.slice(0, 1, 6);
    moved.first_sequence = 1;
    EXPECT_NE(testing::forward(model, moved, 1), loss);
    EXPECT_NE(testing::forward(model, batch.slice(0, 1, 7), 1), loss);
    Transformer other(config, {.seed = 12});
    set_weights(other, random_weights(config));
    EXPECT_NE(testing::forward(other, batch.slice(0, 1, 6), 1), loss);
  }
}

TEST(Transformer, ScalesAndAddsGradients) {
  const ModelConfig config = small(Family::gpt2);
  TokenBatch batch = random_batch(config, 2, 9);
  Transformer model(config, {.micro_batch_size = 2});
  set_weights(model, random_weights(config));
  const StepResult once = step(model, batch.whole());
  model.zero_gradients();
  const StepResult scaled = step(model, batch.whole(), 1024);  // a power of two: exact
  EXPECT_EQ(once.loss, scaled.loss);
  for (size_t i = 0; i < once.gradients.size(); i++) {
    ASSERT_EQ(1024 * once.gradients[i], scaled.gradients[i]) << i;
  }
  // Adding to what is there rounds at most once for each term added.
  const StepResult twice = step(model, batch.whole(), 1024);
  for (size_t i = 0; i < once.gradients.size(); i++) {
    ASSERT_NEAR(twice.gradients[i], 2 * scaled.gradients[i],
                1e-5 * std::abs(scaled.gradients[i]) + 1e-3);
  }
}

TEST(Transformer, LossesAreThoseOfTheReferenceWithoutDropout) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    ModelConfig config = small(family);
    config.dropout = 0.5f;  // losses() has none
    TokenBatch batch = random_batch(config, 3, 9);
    const std::vector<float> start = random_weights(config);
    const std::vector<double> weights(start.begin(), start.end());
    for (const bool training : {true, false}) {
      Transformer model(config, {.micro_batch_size = 3, .training = training});
      set_weights(model, start);
      const Buffer losses(DType::fp32, {3, 9});
      model.losses(batch.whole(), losses.tensor());
      Reference reference(config, weights);
      for (size_t b = 0; b < 3; b++) {
        const auto expected = reference.losses(std::span(batch.tokens()).subspan(9 * b, 9),
                                               std::span(batch.targets()).subspan(9 * b, 9));
        for (size_t t = 0; t < 9; t++) {
          EXPECT_NEAR(losses.tensor().as<float>()[9 * b + t], expected[t], 1e-5);
        }
      }
    }
  }
}

TEST(Transformer, TellsWhenEachGroupIsComplete) {
  for (const bool tied : {true, false}) {
    ModelConfig config = small(Family::llama);
    config.tied_embeddings = tied;
    TokenBatch batch = random_batch(config, 1, 9);
    Transformer model(config, {});
    set_weights(model, random_weights(config));
    std::vector<int> order;
    std::vector<float> seen(model.gradients().size());
    testing::forward(model, batch.whole(), 1);
    model.backward([&](int group) {
      order.push_back(group);
      const auto [begin, end] = model.table().group_range(group);
      std::copy(model.gradients().as<float>() + begin, model.gradients().as<float>() + end,
                seen.begin() + begin);
    });
    EXPECT_EQ(order, (std::vector<int>{3, 2, 1, 0}));
    // Nothing was added after its group was called complete.
    EXPECT_EQ(std::memcmp(seen.data(), model.gradients().data(), seen.size() * 4), 0);
  }
}

TEST(Transformer, RefusesWhatItCannotDo) {
  const ModelConfig config = small(Family::gpt2);
  TokenBatch batch = random_batch(config, 2, 9);
  Transformer model(config, {.micro_batch_size = 1});
  EXPECT_THROW(testing::forward(model, batch.whole(), 1), std::logic_error);  // two sequences
  EXPECT_THROW(model.backward(nullptr), std::logic_error);                    // before forward
  testing::forward(model, batch.slice(0, 1), 1);
  model.backward(nullptr);
  EXPECT_THROW(model.backward(nullptr), std::logic_error);  // twice
  Transformer evaluation(config, {.training = false});
  EXPECT_THROW(testing::forward(evaluation, batch.slice(0, 1), 1), std::logic_error);
  EXPECT_THROW(evaluation.gradients(), std::logic_error);
  EXPECT_EQ(evaluation.memory().gradients, 0);
  EXPECT_THROW(Transformer(config, {.sequence_length = 13}), std::logic_error);
}

}  // namespace
}  // namespace lockstep
