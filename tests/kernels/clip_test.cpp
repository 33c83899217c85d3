#include "kernels/clip.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace lockstep::kernels {
namespace {

struct Clip : testing::Test {
  void decide() {
    Stream stream;
    seconds.resize(static_cast<size_t>(places.workers));
    decide_step(&decision, &step, seconds.data(), numbers.data(), places, &inputs, stream);
  }
  // Three workers with two virtual workers each, two buckets.
  StepNumbers places{3, 2, 2};
  std::vector<double> numbers = std::vector<double>(24), seconds;
  ClipInputs inputs;
  StepDecision decision;
  AdamStep step;
};

TEST_F(Clip, PlacesAreEachWorkersOwn) {
  EXPECT_EQ(places.size(), 2 + 2 + 4);
  std::vector<int> taken(24);
  for (int w = 0; w < 3; w++) {
    taken[static_cast<size_t>(w * places.size())]++;
    taken[static_cast<size_t>(places.seconds(w))]++;
    for (int v = 0; v < 2; v++) {
      taken[static_cast<size_t>(places.loss(w, v))]++;
      for (int b = 0; b < 2; b++) taken[static_cast<size_t>(places.squares(w, b, v))]++;
    }
  }
  EXPECT_EQ(taken, std::vector<int>(24, 1));
}

// Virtual worker by virtual worker, and for squares bucket by bucket before that: 2^53 + 1 is lost,
// 1 + 1 + 2^53 is not. Whatever the number of workers.
TEST_F(Clip, SumsInTheOrderOfVirtualWorkers) {
  for (const int workers : {1, 2, 3, 6}) {
    places = {workers, 6 / workers, 2};
    numbers.assign(static_cast<size_t>(workers * places.size()), 0);
    const auto set = [&](int bucket, int v, double value) {  // bucket -1: a loss
      const int worker = v / places.virtual_workers_each, own = v % places.virtual_workers_each;
      const int64_t at =
          bucket < 0 ? places.loss(worker, own) : places.squares(worker, bucket, own);
      numbers[static_cast<size_t>(at)] = value;
    };
    set(-1, 0, 1), set(-1, 1, 1), set(-1, 5, 0x1p53);
    set(0, 5, 0x1p53), set(1, 0, 1), set(1, 1, 1);
    decide();
    EXPECT_EQ(decision.loss_sum, 0x1p53 + 2) << workers;
    EXPECT_EQ(decision.sum_of_squares, 0x1p53) << workers;
  }
}

TEST_F(Clip, FactorByGlobalNorm) {
  inputs.clip_norm = 2;
  for (const auto& [norm, factor] :
       {std::pair{0.0, 1.0f}, {1.5, 1.0f}, {2.0, 1.0f}, {8.0, 0.25f}}) {
    for (const double scale : {1.0, 1024.0}) {
      inputs.loss_scale = scale;
      numbers[static_cast<size_t>(places.squares(1, 1, 1))] = norm * norm * scale * scale;
      decide();
      EXPECT_EQ(step.gradient_factor, factor / static_cast<float>(scale)) << norm;
      EXPECT_EQ(step.skipped, 0);
    }
  }
}

TEST_F(Clip, ZeroTurnsItOff) {
  numbers[static_cast<size_t>(places.squares(0, 0, 0))] = 1e60;
  decide();
  EXPECT_EQ(step.gradient_factor, 1);
}

TEST_F(Clip, WhatIsNotFiniteSkipsTheStep) {
  for (const double bad :
       {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
        std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t place : {places.loss(2, 1), places.squares(0, 1, 0)}) {
      numbers.assign(24, 1);
      numbers[static_cast<size_t>(place)] = bad;
      decide();
      EXPECT_EQ(decision.finite, 0);
      EXPECT_EQ(step.skipped, 1);
    }
  }
  numbers.assign(24, 1e300);  // large is not infinite
  decide();
  EXPECT_EQ(step.skipped, 0);
}

TEST_F(Clip, OneWorkerStopsAll) {
  decide();
  EXPECT_EQ(decision.stop, 0);
  numbers[static_cast<size_t>(2 * places.size())] = 1;
  decide();
  EXPECT_EQ(decision.stop, 1);
}

TEST_F(Clip, SecondsAreHandedOnAndDecideNothing) {
  inputs.clip_norm = 1;
  numbers.assign(24, 0.5);
  decide();
  const StepDecision before = decision;
  for (int w = 0; w < 3; w++) numbers[static_cast<size_t>(places.seconds(w))] = 1e9 + w;
  decide();
  EXPECT_EQ(seconds, (std::vector<double>{1e9, 1e9 + 1, 1e9 + 2}));
  EXPECT_EQ(decision.loss_sum, before.loss_sum);
  EXPECT_EQ(decision.sum_of_squares, before.sum_of_squares);
}

}  // namespace
}  // namespace lockstep::kernels
