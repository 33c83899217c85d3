#include "trainer/rehearsal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/trainer/rehearsed.h"

namespace lockstep {
namespace {

using tests::small_training;

TEST(PlannedMemory, IsWhatATrainingHolds) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    for (const DType precision : {DType::fp32, DType::bf16}) {
      for (const bool recompute : {false, true}) {
        TrainConfig config = small_training(family, precision);
        config.recompute = recompute;
        const Training::Memory plan = planned_memory(config, 0, 1);
        tests::RealTraining real(config);
        EXPECT_EQ(plan.model.weights, real.training.memory().model.weights);
        EXPECT_EQ(plan.model.activations, real.training.memory().model.activations);
        EXPECT_EQ(plan.total(), real.training.memory().total());
        EXPECT_EQ(plan.model.workspace, 0) << "of the CPU";
        const Transformer& model = real.training.model();
        EXPECT_EQ(Transformer::planned_memory(config.model, model.options()).total(),
                  plan.model.total());
      }
    }
  }
}

TEST(PlannedMemory, OptimizerStateIsDealtOutAndAllElseIsNot) {
  TrainConfig config = small_training(Family::gpt2, DType::bf16);
  config.virtual_workers = 4;
  config.batch_size = 8;
  config.device = Device::cuda;
  const Training::Memory one = planned_memory(config, 0, 1), four = planned_memory(config, 0, 4);
  EXPECT_EQ(one.model.total(), four.model.total());
  EXPECT_LT(four.optimizer, one.optimizer / 3);
  // Two sums of virtual workers wait at most where one worker has four; four workers exchange.
  EXPECT_EQ(one.reduction, 2 * one.model.gradients);
  EXPECT_GT(four.reduction, 0);
  EXPECT_GT(four.model.workspace, int64_t{32} << 20);
  EXPECT_EQ(four.model.inputs, 2 * 4 * config.micro_batch_size * config.model.context_length);
}

TEST(LargestMicroBatch, IsTheLastThatFits) {
  TrainConfig config = small_training(Family::llama, DType::bf16);
  config.device = Device::cuda;
  const Training::Memory plan = planned_memory(config, 0, 1);
  const int64_t memory = int64_t{1} << 30;
  const int64_t most = largest_micro_batch(config, plan, memory);
  ASSERT_GT(most, 2);
  const auto total_of = [&](int64_t sequences) {
    config.batch_size = config.micro_batch_size = sequences;
    const Training::Memory memory_then = planned_memory(config, 0, 1);
    return memory_then.total() - memory_then.inputs + plan.inputs;  // of plan's batch
  };
  EXPECT_LE(total_of(most), memory);
  EXPECT_GT(total_of(most + 1), memory);
  EXPECT_EQ(largest_micro_batch(config, plan, 1000), 0);
}

// Of a device that moves 100 bytes and computes 10 FLOPs a second, and tensor cores 1000.
constexpr GpuLimits kSlow{"slow", "slow", 100, 1000, 10, 50};
constexpr Efficiency kPerfect{1, 1, 1, 1, 0};

TEST(PredictedTime, EachPieceTakesTheLongerOfTransferAndArithmetic) {
  WorkLog log;
  const int stream = log.new_stream();
  log.note(stream, {"before", 1e6});
  log.note(stream, {"copy", 300});                          // 3 s
  log.note(stream, {"product", 100, 5000, Unit::tensor});   // 5 s against 1 s
  log.note(stream, {"product", 2000, 5000, Unit::tensor});  // 5 s against 20 s
  log.note(stream, {"attention", 100, 70});                 // 7 s
  log.note(stream, {"all_to_all", 100, 0, Unit::link});     // 2 s
  const Prediction all = predicted_time(log, 1, kSlow, kPerfect);
  EXPECT_DOUBLE_EQ(all.step_s, 3 + 5 + 20 + 7 + 2);
  ASSERT_EQ(all.rows.size(), 4u);
  EXPECT_EQ(all.rows[0].name, "product");
  EXPECT_EQ(all.rows[0].calls, 2);
  EXPECT_EQ(all.rows[0].flops, 10000);
  EXPECT_DOUBLE_EQ(all.rows[0].seconds, 25);
  EXPECT_DOUBLE_EQ(all.rows[0].transfer_s, 20);
  const Prediction real = predicted_time(log, 1, kSlow, {0.5, 0.25, 0.5, 0.5, 1});
  EXPECT_DOUBLE_EQ(real.step_s, 6 + 10 + 40 + 28 + 4 + 5 * 1);
}

TEST(PredictedTime, StreamsRunBesideEachOtherButForTheirWaits) {
  WorkLog log;
  const int compute = log.new_stream(), links = log.new_stream();
  log.note(compute, {"layer 2", 200});  // until 2
  log.note_wait(links, log.last(compute));
  log.note(links, {"send 2", 250, 0, Unit::link});  // from 2 to 7
  log.note(compute, {"layer 1", 300});              // until 5
  log.note_wait(links, log.last(compute));
  log.note(links, {"send 1", 50, 0, Unit::link});  // from 7 to 8
  log.note_wait(compute, log.last(links));
  log.note(compute, {"update", 100});  // from 8 to 9
  EXPECT_DOUBLE_EQ(predicted_time(log, 0, kSlow, kPerfect).step_s, 9);
}

TEST(PredictedStep, HasTheProductsOfTheFormula) {
  if (!kCudaIsBuilt) GTEST_SKIP() << "kernels are predicted by their host code";
  for (const Family family : {Family::gpt2, Family::llama}) {
    TrainConfig config = small_training(family, DType::bf16);
    config.device = Device::cuda;
    const Prediction step = predicted_step(config, 1, known_gpus().front());
    double products = 0, attention = 0;
    for (const Prediction::Row& row : step.rows) {
      (row.name.starts_with("product") ? products : attention) += row.flops;
    }
    const auto tokens = static_cast<double>(config.batch_size * config.model.context_length);
    const ModelConfig& model = config.model;
    const auto width = static_cast<double>(model.num_heads * model.head_dim);
    const auto length = static_cast<double>(model.context_length);
    const double formula_attention = 6 * static_cast<double>(model.num_layers) * width * length;
    EXPECT_DOUBLE_EQ(products / tokens, training_flops_per_token(model) - formula_attention);
    // Nine products where the formula has six, because backward makes the scores again, twice, and
    // the gradient of the weights as well; and the diagonal counts whole.
    EXPECT_DOUBLE_EQ(attention / tokens, formula_attention * 9 / 6 * (length + 1) / length);
    EXPECT_GT(step.tokens_per_second, 0);
  }
}

TEST(PredictedStep, WorkersExchangeEveryGradientOnceAndEveryWeight) {
  if (!kCudaIsBuilt) GTEST_SKIP() << "kernels are predicted by their host code";
  TrainConfig config = small_training(Family::gpt2, DType::bf16);
  config.device = Device::cuda;
  config.virtual_workers = 2;
  config.batch_size = 4;
  const Prediction step = predicted_step(config, 2, known_gpus().front());
  const Training::Memory plan = planned_memory(config, 0, 2);
  double gradients = 0, gathered = 0;
  for (const Prediction::Row& row : step.rows) {
    if (row.name == "all_to_all") gradients += row.bytes;
    if (row.name == "all_gather") gathered += row.bytes;
  }
  EXPECT_EQ(gradients, static_cast<double>(plan.model.gradients) / 2);
  // With the worker's numbers: whether to stop, seconds, a loss, and the squares of its slice.
  const double numbers = 4 * sizeof(double);
  EXPECT_EQ(gathered, static_cast<double>(plan.model.weights) / 2 + numbers);
}

}  // namespace
}  // namespace lockstep
