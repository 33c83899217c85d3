#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "model/parameter_table.h"
#include "tests/kernels/on_device.h"
#include "tests/trainer/alone.h"
#include "tests/trainer/rehearsed.h"
#include "trainer/train_step.h"

namespace lockstep {
namespace {

using TrainStepCuda = kernels::tests::CudaTest;

// Other tokens at each step.
class RandomTokens : public BatchSource {
 public:
  explicit RandomTokens(const BatchPlan& plan)
      : BatchSource(plan),
        tokens_(DType::int32, {plan.worker_sequences(), plan.sequence_length}),
        targets_(DType::int32, {plan.worker_sequences(), plan.sequence_length}) {}
  Batch batch(int64_t step) override {
    std::mt19937 random(static_cast<unsigned>(step));
    for (const Tensor& side : {tokens_.tensor(), targets_.tensor()}) {
      for (int64_t i = 0; i < side.size(); i++) side.as<int32_t>()[i] = random() % 300;
    }
    return {tokens_.tensor(), targets_.tensor()};
  }

 private:
  Buffer tokens_, targets_;
};

enum class Ahead { no, yes };
enum class Between { nothing, workspaces_move };

// Losses and norms of some steps, and the weights after them.
struct Trained {
  std::vector<double> numbers;
  std::vector<float> weights;
  TrainerState state;
};

Trained trained(const TrainConfig& config, Ahead ahead, Between between = Between::nothing) {
  Alone alone;
  std::atomic<bool> never{false};
  Training training(config, alone, std::make_unique<RandomTokens>(batch_plan(config, alone)),
                    never);
  Transformer& model = training.model();
  // A Training of batches from anywhere begins with zeros. In fp32 these are the master weights.
  const Buffer start(DType::fp32, model.weights().shape());
  initialize(model.table(), config.model, 1, start.tensor());
  copy(model.weights(), start.tensor(), model.stream());
  model.stream().synchronize();

  Trained result;
  for (int64_t step = 1; step <= config.steps; step++) {
    const StepResult done = training.step();
    if (between == Between::workspaces_move && step == 3) {
      for (const Workspace slot : {Workspace::kernel, Workspace::product, Workspace::classifier}) {
        model.stream().workspace(model.stream().workspace_bytes(slot) + 1, slot);
      }
    }
    if (ahead == Ahead::yes && step < config.steps) training.start_step();
    result.numbers.insert(result.numbers.end(), {done.loss, done.grad_norm, done.loss_scale});
  }
  model.stream().synchronize();
  result.weights.resize(static_cast<size_t>(model.weights().size()));
  copy(Tensor(result.weights.data(), DType::fp32, model.weights().shape()), model.weights(),
       model.stream());
  model.stream().synchronize();
  result.state = training.state();
  return result;
}

void expect_same(const Trained& a, const Trained& b) {
  EXPECT_EQ(a.numbers, b.numbers);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.state, b.state);
}

// Batches, dropout's numbers, learning rates and bias corrections are other ones at each step, and
// the graph must find those of its own.
TEST_F(TrainStepCuda, AGraphHasTheBitsOfTheStepThatItCaptured) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    TrainConfig config = tests::small_training(family, DType::fp32);
    config.device = Device::cuda;
    config.model.dropout = 0.1f;
    config.batch_size = 8;  // two virtual workers with two micro-batches each
    config.virtual_workers = 2;
    config.steps = 5;
    config.cuda_graph = false;
    const Trained plain = trained(config, Ahead::no);
    EXPECT_NE(plain.numbers[0], plain.numbers[3]);
    EXPECT_EQ(plain.state.updates, config.steps);
    config.cuda_graph = true;
    expect_same(trained(config, Ahead::no), plain);
    expect_same(trained(config, Ahead::yes), plain);
  }
}

// As when an evaluation between steps asks for more than the steps did.
TEST_F(TrainStepCuda, AGraphIsCapturedAgainWhenItsWorkspacesHaveMoved) {
  TrainConfig config = tests::small_training(Family::gpt2, DType::fp32);
  config.device = Device::cuda;
  config.steps = 5;
  const Trained plain = trained(config, Ahead::no);
  expect_same(trained(config, Ahead::no, Between::workspaces_move), plain);
}

}  // namespace
}  // namespace lockstep
