#pragma once
#include <atomic>
#include <memory>

#include "tests/trainer/alone.h"
#include "trainer/training.h"

// What the tests of plans and predictions share.
namespace lockstep::tests {

inline TrainConfig small_training(Family family, DType precision) {
  TrainConfig config;
  config.steps = 4;
  ModelConfig& model = config.model;
  model.family = family;
  model.activation = family_defaults(family).activation;
  model.tied_embeddings = family == Family::gpt2;
  model.vocab_size = 300;
  model.context_length = 48;
  model.num_layers = 2;
  model.hidden_size = 64;
  model.num_heads = 4;
  model.num_kv_heads = family == Family::gpt2 ? 4 : 2;
  fill_in_sizes(model);
  config.batch_size = config.micro_batch_size = 2;
  config.precision = precision;
  return config;
}

// One token for all places.
class OneToken : public BatchSource {
 public:
  explicit OneToken(const BatchPlan& plan)
      : BatchSource(plan), tokens_(DType::int32, {plan.worker_sequences(), plan.sequence_length}) {}
  Batch batch(int64_t) override { return {tokens_.tensor(), tokens_.tensor()}; }

 private:
  Buffer tokens_;
};

// A training of one worker, on a device that is there.
struct RealTraining {
  explicit RealTraining(const TrainConfig& config)
      : training(config, alone, std::make_unique<OneToken>(batch_plan(config, alone)), never) {}
  Alone alone;
  std::atomic<bool> never{false};
  Training training;
};

}  // namespace lockstep::tests
