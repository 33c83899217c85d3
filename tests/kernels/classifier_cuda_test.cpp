#include "core/mirrored.h"
#include "kernels/classifier.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

struct ClassifierSize {
  int64_t tokens, channels, vocab_size;
};

template <class T>
struct Case {
  static constexpr float kScale = 0.5f;
  ClassifierSize size;
  Values<T> x, weight, dx;
  Values<float> losses, dweight;
  Values<int32_t> targets;

  explicit Case(ClassifierSize s)
      : size(s),
        x(Values<T>::normal({s.tokens, s.channels}, 1)),
        weight(Values<T>::normal({s.vocab_size, s.channels}, 2, 0,
                                 3 / std::sqrt(static_cast<float>(s.channels)))),
        dx({s.tokens, s.channels}, 5),
        losses({s.tokens}, -7),
        dweight({s.vocab_size, s.channels}, 10),
        targets({s.tokens}) {
    std::mt19937 random(3);
    for (int64_t n = 0; n < s.tokens; n++) {
      targets.set(n, n % 5 == 3 ? -1.0f : static_cast<float>(random() % s.vocab_size));
    }
  }

  void run_on_cpu() {
    Stream host;
    classifier_loss_and_gradient(losses.tensor(), dx.tensor(), dweight.tensor(), x.tensor(),
                                 weight.tensor(), targets.tensor(), &kScale, host);
  }
  // Replaces what is written and added to by the device's results.
  void run_on_gpu(bool with_gradient = true, int64_t shift = 0) {
    Stream stream(Device::cuda);
    OnDevice<T> gpu_x(x, stream, shift), gpu_weight(weight, stream, shift),
        gpu_dx(dx, stream, shift);
    OnDevice<float> gpu_losses(losses, stream, shift), gpu_dweight(dweight, stream, shift);
    OnDevice<int32_t> gpu_targets(targets, stream, shift);
    Mirrored<float> scale(Device::cuda);
    scale.host() = kScale;
    scale.upload(stream);
    if (with_gradient) {
      classifier_loss_and_gradient(gpu_losses.tensor(), gpu_dx.tensor(), gpu_dweight.tensor(),
                                   gpu_x.tensor(), gpu_weight.tensor(), gpu_targets.tensor(),
                                   scale.there(), stream);
    } else {
      classifier_loss(gpu_losses.tensor(), gpu_x.tensor(), gpu_weight.tensor(),
                      gpu_targets.tensor(), stream);
    }
    losses = gpu_losses.values(), dx = gpu_dx.values(), dweight = gpu_dweight.values();
  }
};

// Single values, tails of packs, a short row of more packs than threads, a long row (more than
// 4096), nothing.
constexpr ClassifierSize kClassifierSizes[] = {{1, 1, 1},    {1, 8, 2},     {3, 7, 5},
                                               {65, 20, 57}, {20, 12, 600}, {10, 16, 2100},
                                               {4, 8, 9001}, {0, 4, 4}};

// Logits are sums of at most 20 products in fp32, together below 100: wrong by at most 1e-5 times a
// few, and so, relative, are their exponentials; sums of such in fp32 add as much. On either side.
constexpr double kRelative = 1e-4;

template <class T>
class ClassifierCuda : public CudaTest {};
TYPED_TEST_SUITE(ClassifierCuda, FloatTypes);

// The error of one element of the logits' gradient, of magnitude d: kRelative, and one rounding to
// T, which may fall on either side: one unit, twice storage_error. It enters dx times a weight, and
// dweight times an x. Over all of a row, |d| adds up to at most 2 * kScale; over a column, to the
// tokens at most.
TYPED_TEST(ClassifierCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  for (const ClassifierSize s : kClassifierSizes) {
    for (const int64_t shift : {0, 2}) {
      SCOPED_TRACE(testing::Message() << s.tokens << " x " << s.channels << " x " << s.vocab_size);
      Case<T> cpu(s), gpu(s);
      cpu.run_on_cpu();
      gpu.run_on_gpu(true, shift);
      for (int64_t n = 0; n < s.tokens; n++) {
        ASSERT_NEAR(gpu.losses[n], cpu.losses[n], 4e-5) << n;
        if (cpu.targets[n] < 0) {
          ASSERT_EQ(gpu.losses[n], 0);
        }
      }
      constexpr double kOfGradient = kRelative + 2 * kStorageRounding<T>;
      const auto floor = static_cast<double>(s.vocab_size) * 2 * kStorageFloor<T>;
      const auto greatest = [](const auto& values) {
        double most = 0;
        for (int64_t i = 0; i < values.size(); i++) most = std::max(most, std::abs(values[i]));
        return most;
      };
      const double dx_error = greatest(gpu.weight) * (2 * Case<T>::kScale * kOfGradient + floor);
      for (int64_t i = 0; i < cpu.dx.size(); i++) {
        ASSERT_NEAR(gpu.dx[i], cpu.dx[i], dx_error + 2 * storage_error<T>(cpu.dx[i])) << i;
      }
      const double dweight_error = greatest(gpu.x) * static_cast<double>(s.tokens) *
                                   Case<T>::kScale * (kOfGradient + 2 * kStorageFloor<T>)+32 * 10 *
                                   kRounding;
      for (int64_t i = 0; i < cpu.dweight.size(); i++) {
        ASSERT_NEAR(gpu.dweight[i], cpu.dweight[i], dweight_error) << i;
      }
    }
  }
}

TYPED_TEST(ClassifierCuda, LossIsTheSameWithoutGradient) {
  Case<TypeParam> with({40, 24, 300}), without({40, 24, 300});
  with.run_on_gpu(true);
  without.run_on_gpu(false);
  EXPECT_EQ(with.losses.bytes(), without.losses.bytes());
}

// A token's loss and gradient have the same bits whichever tokens stand in the rows around it.
TYPED_TEST(ClassifierCuda, RowsDoNotDependOnEachOther) {
  constexpr int64_t kTokens = 30, kChannels = 24, kLast = kTokens - 1;
  Case<TypeParam> one({kTokens, kChannels, 300}), other({kTokens, kChannels, 300});
  for (int64_t i = 0; i < kLast * kChannels; i++) other.x.set(i, 1);
  for (int64_t n = 0; n < kLast; n++) other.targets.set(n, 7);
  one.run_on_gpu();
  other.run_on_gpu();
  EXPECT_EQ(one.losses.bytes(kLast, kTokens), other.losses.bytes(kLast, kTokens));
  EXPECT_NE(one.losses[0], other.losses[0]);
  EXPECT_EQ(one.dx.bytes(kLast * kChannels, kTokens * kChannels),
            other.dx.bytes(kLast * kChannels, kTokens * kChannels));
}

TYPED_TEST(ClassifierCuda, LogitsAreTheProduct) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  Case<T> test({3, 9, 130});
  Values<float> logits({3, 130});
  OnDevice<T> x(test.x, stream), weight(test.weight, stream);
  OnDevice<float> gpu_logits(logits, stream);
  classifier_logits(logits.tensor(), test.x.tensor(), test.weight.tensor(), host);
  classifier_logits(gpu_logits.tensor(), x.tensor(), weight.tensor(), stream);
  const Values<float>& got = gpu_logits.values();
  for (int64_t i = 0; i < logits.size(); i++) ASSERT_NEAR(got[i], logits[i], 4e-5) << i;
}

using ClassifierCudaNumbers = CudaTest;

// More tokens than a chunk has (2048), of a small vocabulary.
TEST_F(ClassifierCudaNumbers, ChunksOfTokensAddUp) {
  Case<bf16> cpu({2060, 2, 5}), gpu({2060, 2, 5});
  cpu.run_on_cpu();
  gpu.run_on_gpu();
  for (int64_t n = 0; n < cpu.size.tokens; n++) {
    ASSERT_NEAR(gpu.losses[n], cpu.losses[n], 4e-5) << n;
    ASSERT_NEAR(gpu.dx[2 * n], cpu.dx[2 * n], 0.02 * std::abs(cpu.dx[2 * n]) + 0.02) << n;
  }
  // Roundings of 2060 gradients below 0.5 to bf16 that differ seldom, times an x of order 1.
  for (int64_t i = 0; i < 10; i++) {
    EXPECT_NEAR(gpu.dweight[i], cpu.dweight[i], 0.5 + 0.01 * std::abs(cpu.dweight[i])) << i;
  }
}

TEST_F(ClassifierCudaNumbers, LargeLogitsDoNotOverflow) {
  Case<float> test({1, 1, 3});
  test.x.set(0, 1000), test.targets.set(0, 2);
  const float weights[] = {1.0f, -1.0f, 0.5f};
  for (int v = 0; v < 3; v++) test.weight.set(v, weights[v]);
  test.run_on_gpu();
  EXPECT_EQ(test.losses[0], 500.0);
  EXPECT_EQ(test.dx[0], 0.5 * (1.0 - 0.5));
}

// One row that is not finite says so in its own loss and gradient and in no other's.
TEST_F(ClassifierCudaNumbers, WhatIsNotFiniteIsPassedOn) {
  for (const float bad : {kInfinity, -kInfinity, kNan}) {
    Case<float> test({20, 4, 100});
    for (int64_t n = 0; n < 20; n++) test.targets.set(n, 1);
    test.x.set(16 * 4, bad);
    test.run_on_gpu();
    for (int64_t n = 0; n < 20; n++) {
      EXPECT_EQ(std::isfinite(test.losses[n]), n != 16) << bad << " " << n;
      EXPECT_EQ(std::isfinite(test.dx[n * 4]), n != 16) << bad << " " << n;
    }
    EXPECT_FALSE(std::isfinite(test.dweight[0]));
  }
}

// A logit of -inf has no probability; a thread that meets nothing else must not spoil the sum.
TEST_F(ClassifierCudaNumbers, ImpossibleTokensHaveNoProbability) {
  Case<float> test({1, 1, 300});
  test.x.set(0, 2), test.targets.set(0, 299);
  for (int64_t v = 0; v < 300; v++) test.weight.set(v, v < 298 ? -3e38f : 1.0f);
  test.run_on_gpu();
  EXPECT_NEAR(test.losses[0], std::log(2.0), 4e-7);
}

// The CPU throws; a device can only say so in its numbers, and must not read beyond the row.
TEST_F(ClassifierCudaNumbers, TargetsOutsideTheVocabularyAreNan) {
  for (const float target : {4.0f, -2.0f, 1e9f}) {
    Case<float> test({3, 2, 4});
    test.targets.set(1, target);
    test.run_on_gpu();
    EXPECT_TRUE(std::isfinite(test.losses[0]) && std::isnan(test.losses[1]));
    EXPECT_TRUE(std::isfinite(test.dx[0]) && std::isnan(test.dx[2]));
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
