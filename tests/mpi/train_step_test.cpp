#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>

#include "comm/agreement.h"
#include "tests/comm/world.h"
#include "tests/trainer/golden_run.h"
#include "trainer/replicas.h"

namespace lockstep {
namespace {

constexpr int64_t kBatchSize = 12;  // 1, 2, 3 and 4 workers

struct MpiTrainStep : testing::Test {
  GoldenRun make(const Golden& golden, DType precision, Communicator& communicator,
                 const GoldenOptions& options = {}) {
    const LossScaler scaler =
        precision == DType::fp16 ? LossScaler::dynamic() : LossScaler::fixed(1);
    return GoldenRun(golden, OptimizerKind::adamw, precision, 1, scaler, communicator, kBatchSize,
                     options);
  }

  // Zero when all workers have the same weights, by a hash of their bits.
  double disagreement(const std::vector<float>& weights) {
    double sums[2] = {0, 0};
    uint64_t hash = 14695981039346656037u;
    for (float w : weights) hash = (hash ^ std::bit_cast<uint32_t>(w)) * 1099511628211u;
    sums[0] = sums[1] = static_cast<double>(hash >> 12);  // exact in float64
    world().all_reduce(&sums[0], 1, ReduceOp::max);
    world().all_reduce(&sums[1], 1, ReduceOp::min);
    return sums[0] - sums[1];
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The promise of docs/determinism.md: equality, of every step's loss and norm and of all weights
// and moments at the end, where 12 virtual workers are one worker's or several workers'.
TEST_F(MpiTrainStep, TheBitsAreThoseOfOneWorker) {
  for (const char* model : {"gpt2", "llama"}) {
    for (const DType precision : {DType::fp32, DType::bf16, DType::fp16}) {
      for (const DType travels : {DType::fp32, DType::bf16}) {
        if (travels == DType::bf16 && precision != DType::bf16) continue;
        const Golden golden(model);
        const GoldenOptions options{.virtual_workers = 12, .gradient_dtype = travels};
        Alone alone;
        GoldenRun one = make(golden, precision, alone, options);
        GoldenRun all = make(golden, precision, world(), options);
        if (precision == DType::fp16) {  // an overflow on the way
          one.scaler.restore(0x1p26, 0);
          all.scaler.restore(0x1p26, 0);
        }
        for (int step = 0; step < 6; step++) {
          const StepResult want = one.step.run(one.state), result = all.step.run(all.state);
          ASSERT_EQ(result.loss, want.loss) << model << " step " << step;
          ASSERT_EQ(result.skipped, want.skipped);
          if (want.skipped) continue;  // the norm is not a number
          ASSERT_EQ(result.grad_norm, want.grad_norm) << model << " step " << step;
        }
        EXPECT_EQ(all.state, one.state);
        EXPECT_EQ(one.state.skipped_steps > 0, precision == DType::fp16);
        EXPECT_TRUE(same_bits(all.weights(), one.weights())) << model << name(precision);
        const AdamW::Piece& whole = one.optimizer.pieces().at(0);
        for (const AdamW::Piece& piece : all.optimizer.pieces()) {
          const AdamW::Piece same = whole.slice(piece.range);
          for (const auto& [ours, theirs] : {std::pair{piece.master, same.master},
                                             {piece.exp_avg, same.exp_avg},
                                             {piece.exp_avg_sq, same.exp_avg_sq}}) {
            ASSERT_EQ(std::memcmp(ours.data(), theirs.data(), ours.size_bytes()), 0);
          }
        }
      }
    }
  }
}

// The same check must see an order that is another: one virtual worker more or less.
TEST_F(MpiTrainStep, AnotherOrderHasOtherBits) {
  const Golden golden("gpt2");
  Alone alone;
  GoldenRun twelve = make(golden, DType::fp32, alone, {.virtual_workers = 12});
  GoldenRun six = make(golden, DType::fp32, alone, {.virtual_workers = 6});
  for (int step = 0; step < 3; step++) twelve.step.run(twelve.state), six.step.run(six.state);
  EXPECT_FALSE(same_bits(twelve.weights(), six.weights()));
}

// Moments and master weights are dealt out.
TEST_F(MpiTrainStep, EachWorkerHoldsItsShareOfTheOptimizersState) {
  const Golden golden("gpt2");
  GoldenRun run = make(golden, DType::bf16, world(), {.virtual_workers = 12});
  int64_t held = 0;
  for (const AdamW::Piece& piece : run.optimizer.pieces()) held += piece.range.size();
  EXPECT_LE(held, run.sharding.padded_size() / world().size());
  EXPECT_EQ(run.optimizer.memory_bytes(), 3 * 4 * held);
}

// The library's own order: what one worker computes alone, all compute together. In fp32 a step's
// gradient is the same sum of 12 terms in another order: relative differences of a few 2^-24. Adam
// makes of them differences of weights of about 1e-7 * 1e-3 a step, which change the loss, whose
// gradient has a norm of a few, by 1e-9 a step; what dominates is the rounding of the losses
// themselves, about 4.6 * 2^-24 = 3e-7 each way.
constexpr double kLossTolerance = 6e-7;

TEST_F(MpiTrainStep, AllReduceHasTheLossCurveOfOneWorker) {
  for (const char* name : {"gpt2", "llama"}) {
    const Golden golden(name);
    Alone alone;
    GoldenRun one = make(golden, DType::fp32, alone, {.replicated = true});
    GoldenRun all = make(golden, DType::fp32, world(), {.replicated = true});
    for (int step = 0; step < 30; step++) {
      const StepResult want = one.step.run(one.state), result = all.step.run(all.state);
      EXPECT_NEAR(result.loss, want.loss, kLossTolerance) << name << " step " << step;
      EXPECT_NEAR(result.grad_norm, want.grad_norm, 1e-4 * want.grad_norm);
    }
    EXPECT_EQ(disagreement(all.weights()), 0) << "the workers' weights drift apart";
    EXPECT_EQ(all.state, one.state);
  }
}

// What is wrong on one worker must make all skip, and leave no trace.
TEST_F(MpiTrainStep, AllSkipWhenOneWorkerHasNoFiniteGradient) {
  const Golden golden("gpt2");
  GoldenRun run = make(golden, DType::fp32, world());
  const bool last = world().rank() == world().size() - 1;
  const std::vector<float> start = run.weights();
  float& weight = run.model.weights().as<float>()[5];
  const float good = weight;
  if (last) weight = NAN;
  EXPECT_TRUE(run.step.run(run.state).skipped);
  weight = good;
  EXPECT_EQ(run.weights(), start);
  EXPECT_FALSE(run.step.run(run.state).skipped);
  EXPECT_EQ(disagreement(run.weights()), 0);
}

// fp16 under mpirun: all halve and grow the scale together.
TEST_F(MpiTrainStep, OverflowsKeepTheWorkersTogether) {
  const Golden golden("gpt2");
  GoldenRun run = make(golden, DType::fp16, world());
  run.scaler.restore(0x1p30, 0);
  while (run.state.step < 30) run.step.run(run.state);
  EXPECT_GT(run.state.skipped_steps, 0);
  EXPECT_GT(run.state.updates, 10);
  EXPECT_EQ(disagreement(run.weights()), 0);
}

TEST_F(MpiTrainStep, AStopAskedOfOneWorkerIsSeenByAllAtTheSameStep) {
  const Golden golden("gpt2");
  GoldenRun run = make(golden, DType::fp32, world());
  EXPECT_FALSE(run.step.run(run.state).stop);
  run.stop_requested = world().rank() == world().size() - 1;
  EXPECT_TRUE(run.step.run(run.state).stop);
}

TEST_F(MpiTrainStep, EveryWorkerLearnsHowLongEachComputes) {
  const Golden golden("gpt2");
  GoldenRun run = make(golden, DType::fp32, world());
  const auto start = std::chrono::steady_clock::now();
  const StepResult result = run.step.run(run.state);
  const std::chrono::duration<double> step = std::chrono::steady_clock::now() - start;
  ASSERT_EQ(result.worker_seconds.size(), static_cast<size_t>(world().size()));
  for (const double seconds : result.worker_seconds) EXPECT_GT(seconds, 0);
  EXPECT_LT(result.worker_seconds[static_cast<size_t>(world().rank())], step.count());
  double sum = 0;
  for (const double seconds : result.worker_seconds) sum += seconds;
  double most = sum, least = sum;
  world().all_reduce(&most, 1, ReduceOp::max);
  world().all_reduce(&least, 1, ReduceOp::min);
  EXPECT_EQ(most, least) << "all know the same";
}

// One flipped bit of one worker's memory.
TEST_F(MpiTrainStep, ComparingReplicasFindsTheWorkerAndTheTensorThatDiffer) {
  if (world().size() == 1) GTEST_SKIP() << "there is nothing to compare with";
  const Golden golden("gpt2");
  GoldenRun run = make(golden, DType::bf16, world());
  run.step.run(run.state);
  check_replicas(run.model, 1, world());
  const Parameter& broken = run.model.table().parameters()[7];
  const int culprit = world().size() - 1;
  if (world().rank() == culprit) {
    auto* bits = static_cast<uint16_t*>(run.model.weights().data());
    bits[broken.offset + 3] ^= 1;
  }
  try {
    check_replicas(run.model, 1, world());
    ADD_FAILURE() << "not found";
  } catch (const SharedError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::device);
    EXPECT_THAT(error.what(),
                testing::StartsWith(fmt::format("after step 1 the workers' weights differ: {} is "
                                                "not on worker {} what it is on worker 0",
                                                broken.name, culprit)));
  }
}

}  // namespace
}  // namespace lockstep
