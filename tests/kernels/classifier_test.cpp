#include "kernels/classifier.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

struct ClassifierSize {
  int64_t tokens, channels, vocab_size;
};

template <class T>
struct Case {
  static constexpr float kScale = 0.5f;
  ClassifierSize size;
  std::vector<T> x, weight, dx;
  std::vector<float> losses, dweight, logits;
  std::vector<int32_t> targets;

  explicit Case(ClassifierSize s)
      : size(s),
        dx(s.tokens * s.channels),
        losses(s.tokens, -7.0f),
        dweight(s.vocab_size * s.channels, 10.0f),
        logits(s.tokens * s.vocab_size) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    const float width = 1.0f / std::sqrt(static_cast<float>(s.channels));
    for (int64_t i = 0; i < s.tokens * s.channels; i++) {
      x.push_back(from_float<T>(normal(random)));
    }
    for (int64_t i = 0; i < s.vocab_size * s.channels; i++) {
      weight.push_back(from_float<T>(3 * width * normal(random)));
    }
    for (int64_t n = 0; n < s.tokens; n++) {
      targets.push_back(n % 5 == 3 ? -1 : static_cast<int32_t>(random() % s.vocab_size));
    }
  }

  Tensor xs() { return tensor(x, {size.tokens, size.channels}); }
  Tensor weights() { return tensor(weight, {size.vocab_size, size.channels}); }
  void run() {
    Stream stream;
    classifier_loss_and_gradient(tensor(losses, {size.tokens}),
                                 tensor(dx, {size.tokens, size.channels}),
                                 tensor(dweight, {size.vocab_size, size.channels}), xs(), weights(),
                                 tensor(targets, {size.tokens}), &kScale, stream);
  }
  void run_loss() {
    Stream stream;
    classifier_loss(tensor(losses, {size.tokens}), xs(), weights(), tensor(targets, {size.tokens}),
                    stream);
  }
};

// The definition, in float64, and bounds of what fp32 arithmetic and rounding of the logits'
// gradient, dx and (10 + dweight) may add.
struct Reference {
  std::vector<double> losses, dx, dweight;
  std::vector<double> dx_error, dweight_error;  // bounds

  template <class T>
  explicit Reference(const Case<T>& c)
      : losses(c.size.tokens),
        dx(c.size.tokens * c.size.channels),
        dweight(c.size.vocab_size * c.size.channels, 10.0),
        dx_error(dx.size()),
        dweight_error(dweight.size()) {
    const auto [tokens, channels, vocab_size] = c.size;
    std::vector<double> logits(vocab_size);
    for (int64_t n = 0; n < tokens; n++) {
      if (c.targets[n] < 0) continue;
      double sum = 0;
      for (int64_t v = 0; v < vocab_size; v++) {
        logits[v] = 0;
        for (int64_t i = 0; i < channels; i++) {
          logits[v] += double{to_float(c.x[n * channels + i])} *
                       double{to_float(c.weight[v * channels + i])};
        }
        sum += std::exp(logits[v]);
      }
      losses[n] = std::log(sum) - logits[c.targets[n]];
      for (int64_t v = 0; v < vocab_size; v++) {
        const double p = std::exp(logits[v]) / sum, is_target = v == c.targets[n];
        const double d = Case<T>::kScale * (p - is_target);
        const double d_error = kRelative * Case<T>::kScale * (p + is_target) + storage_error<T>(d);
        for (int64_t i = 0; i < channels; i++) {
          const double w = to_float(c.weight[v * channels + i]),
                       x = to_float(c.x[n * channels + i]);
          dx[n * channels + i] += d * w;
          dx_error[n * channels + i] += d_error * std::abs(w);
          dweight[v * channels + i] += d * x;
          dweight_error[v * channels + i] += d_error * std::abs(x);
        }
      }
    }
    for (size_t i = 0; i < dx.size(); i++) {
      dx_error[i] += storage_error<T>(dx[i]);
    }
    for (size_t i = 0; i < dweight.size(); i++) dweight_error[i] += 16 * 10 * kRounding;
  }

  // Logits are sums of at most 48 products in fp32, together below 100: wrong by at most 1e-5
  // times a few, and so, relative, are their exponentials; sums of such in fp32 add as much.
  static constexpr double kRelative = 5e-5;
};

const ClassifierSize kClassifierSizes[] = {{1, 1, 1},       {1, 8, 2},     {3, 7, 5},
                                           {65, 20, 257},   {130, 48, 70}, {70, 4, 70000},
                                           {1100, 16, 100}, {0, 4, 4}};

template <class T>
class Classifier : public testing::Test {
 protected:
  void TearDown() override { set_num_threads(1); }
};
TYPED_TEST_SUITE(Classifier, FloatTypes);

TYPED_TEST(Classifier, IsTheDefinition) {
  using T = TypeParam;
  set_num_threads(2);
  for (const ClassifierSize s : kClassifierSizes) {
    SCOPED_TRACE(testing::Message() << s.tokens << " x " << s.channels << " x " << s.vocab_size);
    Case<T> test(s);
    test.run();
    const Reference want(test);
    for (int64_t n = 0; n < s.tokens; n++) {
      ASSERT_NEAR(test.losses[n], want.losses[n], 2e-5) << n;
      if (test.targets[n] < 0) {
        ASSERT_EQ(test.losses[n], 0.0f);
      }
    }
    for (int64_t i = 0; i < s.tokens * s.channels; i++) {
      ASSERT_NEAR(to_float(test.dx[i]), want.dx[i], want.dx_error[i]) << i;
    }
    for (int64_t i = 0; i < s.vocab_size * s.channels; i++) {
      ASSERT_NEAR(test.dweight[i], want.dweight[i], want.dweight_error[i]) << i;
    }
  }
}

TYPED_TEST(Classifier, LossIsTheSameWithoutGradient) {
  Case<TypeParam> with({150, 24, 300}), without({150, 24, 300});
  with.run(), without.run_loss();
  EXPECT_EQ(bytes(with.losses), bytes(without.losses));
}

TYPED_TEST(Classifier, BitsDoNotDependOnThreads) {
  for (const ClassifierSize s : {ClassifierSize{200, 24, 600}, ClassifierSize{1090, 16, 70}}) {
    expect_same_bits_for_any_threads([&] {
      Case<TypeParam> test(s);
      test.run();
      return bytes(test.losses) + bytes(test.dx) + bytes(test.dweight);
    });
  }
}

// A token's loss has the same bits whichever tokens stand before it.
TYPED_TEST(Classifier, LossesDoNotDependOnEachOther) {
  Case<TypeParam> all({150, 24, 300}), last({2, 24, 300});
  last.x.assign(all.x.end() - 48, all.x.end());
  last.weight = all.weight;
  last.targets.assign(all.targets.end() - 2, all.targets.end());
  all.run_loss(), last.run_loss();
  EXPECT_EQ(all.losses[148], last.losses[0]);
  EXPECT_EQ(all.losses[149], last.losses[1]);
}

TYPED_TEST(Classifier, LogitsAreTheProduct) {
  for (const int64_t tokens : {1, 3, 70}) {
    Case<TypeParam> test({tokens, 9, 130});
    Stream stream;
    classifier_logits(tensor(test.logits, {tokens, 130}), test.xs(), test.weights(), stream);
    for (int64_t n = 0; n < tokens; n++) {
      for (int64_t v = 0; v < 130; v++) {
        double want = 0;
        for (int64_t i = 0; i < 9; i++) {
          want += double{to_float(test.x[n * 9 + i])} * double{to_float(test.weight[v * 9 + i])};
        }
        ASSERT_NEAR(test.logits[n * 130 + v], want, 2e-5);
      }
    }
  }
}

TEST(ClassifierNumbers, LargeLogitsDoNotOverflow) {
  Case<float> test({1, 1, 3});
  test.x = {1000.0f}, test.weight = {1.0f, -1.0f, 0.5f}, test.targets = {2};
  test.run();
  EXPECT_EQ(test.losses[0], 500.0f);
  EXPECT_EQ(test.dx[0], 0.5f * (1.0f - 0.5f));
}

// One row that is not finite says so in its own loss and gradient and in no other's.
TEST(ClassifierNumbers, WhatIsNotFiniteIsPassedOn) {
  for (const float bad : {kInfinity, -kInfinity, kNan}) {
    Case<float> test({70, 4, 100});
    test.targets.assign(70, 1);
    test.x[66 * 4] = bad;
    test.run();
    for (int64_t n = 0; n < 70; n++) {
      EXPECT_EQ(std::isfinite(test.losses[n]), n != 66) << bad << " " << n;
      EXPECT_EQ(std::isfinite(test.dx[n * 4]), n != 66) << bad << " " << n;
    }
    EXPECT_FALSE(std::isfinite(test.dweight[0]));
  }
}

TEST(ClassifierErrors, NamesATargetOutsideTheVocabulary) {
  for (const int32_t target : {4, -2}) {
    Case<float> test({3, 2, 4});
    test.targets[1] = target;
    EXPECT_THROW(test.run(), std::logic_error);
    EXPECT_THROW(test.run_loss(), std::logic_error);
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
