#include "kernels/adam.h"

#include <fstream>
#include <sstream>

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

struct Update : AdamConstants, AdamStep {};

// One parameter in float64, by the formulas of adam.h.
struct Reference {
  double master, exp_avg, exp_avg_sq;

  void update(double gradient, const Update& s) {
    double g = gradient * s.gradient_factor;
    if (s.clip_value > 0) g = std::max<double>(-s.clip_value, std::min<double>(s.clip_value, g));
    if (!s.decoupled) g += double{s.weight_decay} * master;
    exp_avg = s.beta1 * exp_avg + (1 - double{s.beta1}) * g;
    exp_avg_sq = s.beta2 * exp_avg_sq + (1 - double{s.beta2}) * g * g;
    if (s.decoupled) master -= double{s.learning_rate} * s.weight_decay * master;
    master -= s.learning_rate * (exp_avg / s.bias_correction1) /
              (std::sqrt(exp_avg_sq / s.bias_correction2) + s.epsilon);
  }
};

template <class T>
struct AdamCase {
  int64_t n;
  Values<T> weights;
  Values<float> master, exp_avg, exp_avg_sq, gradients;

  explicit AdamCase(int64_t count)
      : n(count),
        weights({count}),
        master(Values<float>::normal({count}, 1)),
        exp_avg(Values<float>::normal({count}, 2, 0, 0.1f)),
        exp_avg_sq(Values<float>::normal({count}, 3, 0.5f, 0.05f)),
        gradients(Values<float>::normal({count}, 4)) {}
  void update(const Update& step) {
    Stream stream;
    adam_update(weights.tensor(), master.tensor(), exp_avg.tensor(), exp_avg_sq.tensor(),
                gradients.tensor(), step, &step, stream);
  }
};

Update step_of(bool decoupled, float clip_value) {
  Update step;
  step.learning_rate = 0.01f, step.weight_decay = 0.1f, step.decoupled = decoupled;
  step.bias_correction1 = 0.1f, step.bias_correction2 = 0.05f;
  step.gradient_factor = 0.25f, step.clip_value = clip_value;
  return step;
}

template <class T>
class Adam : public testing::Test {};
TYPED_TEST_SUITE(Adam, FloatTypes);

TYPED_TEST(Adam, IsTheDefinition) {
  using T = TypeParam;
  for (bool decoupled : {true, false}) {
    for (float clip_value : {0.0f, 0.1f}) {
      for (int64_t n : {1, 7, 1000, 40'000}) {
        const Update step = step_of(decoupled, clip_value);
        AdamCase<T> test(n);
        const AdamCase<T> before = test;
        test.update(step);
        for (int64_t i = 0; i < n; i++) {
          Reference want{before.master[i], before.exp_avg[i], before.exp_avg_sq[i]};
          want.update(before.gradients[i], step);
          const double g = std::abs(0.25 * before.gradients[i]) + 0.1 * std::abs(before.master[i]);
          // Four roundings of each part of the moments; the update is about ten operations on
          // numbers of which exp_avg may have cancelled.
          ASSERT_NEAR(test.exp_avg[i], want.exp_avg,
                      4 * kRounding * (std::abs(before.exp_avg[i]) + g));
          ASSERT_NEAR(test.exp_avg_sq[i], want.exp_avg_sq,
                      8 * kRounding * (want.exp_avg_sq + g * g));
          const double largest_update =
              0.01 * 10 * (std::abs(before.exp_avg[i]) + g) / std::sqrt(want.exp_avg_sq * 20);
          ASSERT_NEAR(test.master[i], want.master,
                      3 * kRounding * std::abs(before.master[i]) + 16 * kRounding * largest_update);
          ASSERT_EQ(test.weights[i], to_float(from_float<T>(static_cast<float>(test.master[i]))));
        }
      }
    }
  }
}

TEST(AdamUpdate, WeightsMayBeTheMaster) {
  AdamCase<float> apart(777), together(777);
  const Update step = step_of(true, 0);
  apart.update(step);
  Stream stream;
  adam_update(together.master.tensor(), together.master.tensor(), together.exp_avg.tensor(),
              together.exp_avg_sq.tensor(), together.gradients.tensor(), step, &step, stream);
  EXPECT_EQ(together.master.bytes(), apart.master.bytes());
  EXPECT_EQ(apart.weights.bytes(), apart.master.bytes());
}

TYPED_TEST(Adam, BitsDoNotDependOnThreadsOrPlace) {
  expect_same_bits_for_any_threads([] {
    AdamCase<TypeParam> test(100'003);
    test.update(step_of(true, 0.3f));
    return test.weights.bytes() + test.master.bytes() + test.exp_avg.bytes() +
           test.exp_avg_sq.bytes();
  });
  // A worker that owns parameters [begin, end) alone, as a shard does.
  constexpr int64_t kBegin = 37, kEnd = 1234;
  AdamCase<TypeParam> whole(40'000), part(40'000);
  whole.update(step_of(true, 0.3f));
  Stream stream;
  const Update step = step_of(true, 0.3f);
  const auto of = [](auto& values) { return values.tensor().slice(kBegin, kEnd); };
  adam_update(of(part.weights), of(part.master), of(part.exp_avg), of(part.exp_avg_sq),
              of(part.gradients), step, &step, stream);
  EXPECT_EQ(part.master.bytes(kBegin, kEnd), whole.master.bytes(kBegin, kEnd));
  EXPECT_EQ(part.weights.bytes(kBegin, kEnd), whole.weights.bytes(kBegin, kEnd));
  EXPECT_EQ(part.exp_avg_sq.bytes(kBegin, kEnd), whole.exp_avg_sq.bytes(kBegin, kEnd));
}

TEST(AdamUpdate, ASkippedStepWritesNothing) {
  AdamCase<bf16> test(777);
  const AdamCase<bf16> before = test;
  Update step = step_of(true, 0);
  step.skipped = 1;
  test.update(step);
  EXPECT_EQ(
      test.weights.bytes() + test.master.bytes() + test.exp_avg.bytes() + test.exp_avg_sq.bytes(),
      before.weights.bytes() + before.master.bytes() + before.exp_avg.bytes() +
          before.exp_avg_sq.bytes());
}

TEST(AdamUpdate, ZeroGradientsAndFirstStep) {
  // The first step moves by the learning rate, whatever the gradient's size; none without one.
  AdamCase<float> test(3);
  const float gradients[] = {1e-3f, -1e3f, 0};
  for (int i = 0; i < 3; i++) {
    test.master.set(i, 1), test.exp_avg.set(i, 0), test.exp_avg_sq.set(i, 0);
    test.gradients.set(i, gradients[i]);
  }
  Update step;
  step.learning_rate = 0.125f, step.beta2 = 0.999f;
  step.bias_correction1 = 1 - step.beta1, step.bias_correction2 = 1 - step.beta2;
  test.update(step);
  EXPECT_NEAR(test.master[0], 0.875, 0.125 * 1e-5 + 4 * kRounding);  // epsilon of 1e-8 / 1e-3
  EXPECT_NEAR(test.master[1], 1.125, 4 * kRounding);
  EXPECT_EQ(test.master[2], 1);
}

TEST(AdamUpdate, NanIsNotClippedAway) {
  AdamCase<float> test(2);
  test.gradients.set(0, kNan);
  test.update(step_of(true, 0.1f));
  EXPECT_TRUE(std::isnan(test.master[0]));
  EXPECT_TRUE(std::isfinite(test.master[1]));
}

// A worker's shard may begin and end anywhere, so no value may depend on what stands beside it, nor
// on whether it is computed in a vector or behind the last whole one.
TYPED_TEST(Adam, EachParameterStandsAlone) {
  using T = TypeParam;
  for (const bool decoupled : {true, false}) {
    const Update step = step_of(decoupled, 0.3f);
    AdamCase<T> whole(1000), parts(1000);
    whole.update(step);
    Stream stream;
    int64_t begin = 0;
    for (const int64_t end : {1, 4, 21, 64, 397, 399, 1000}) {
      adam_update(parts.weights.tensor().slice(begin, end), parts.master.tensor().slice(begin, end),
                  parts.exp_avg.tensor().slice(begin, end),
                  parts.exp_avg_sq.tensor().slice(begin, end),
                  parts.gradients.tensor().slice(begin, end), step, &step, stream);
      begin = end;
    }
    for (int64_t i = 0; i < 1000; i++) {
      ASSERT_EQ(to_float(whole.weights[i]), to_float(parts.weights[i])) << i;
      ASSERT_EQ(whole.master[i], parts.master[i]) << i;
      ASSERT_EQ(whole.exp_avg[i], parts.exp_avg[i]) << i;
      ASSERT_EQ(whole.exp_avg_sq[i], parts.exp_avg_sq[i]) << i;
    }
  }
}

// One line of a golden file: a name, which is checked, and its values.
std::vector<double> read_line(std::istream& file, const std::string& name) {
  std::string text, found;
  std::getline(file, text);
  std::istringstream line(text);
  line >> found;
  EXPECT_EQ(found, name);
  std::vector<double> values;
  for (double value; line >> value;) values.push_back(value);
  return values;
}

void expect_golden(const std::string& file_name, Update step) {
  std::ifstream file(LOCKSTEP_GOLDEN "/optimizer/" + file_name);
  ASSERT_TRUE(file) << file_name;
  const auto initial = read_line(file, "initial");
  const auto n = static_cast<int64_t>(initial.size());
  ASSERT_EQ(n, 19);
  AdamCase<float> test(n);
  for (int64_t i = 0; i < n; i++) {
    test.master.set(i, static_cast<float>(initial[i]));
    test.exp_avg.set(i, 0), test.exp_avg_sq.set(i, 0);
  }
  double tolerance = 0;
  for (int k = 1; k <= 10; k++) {
    step.learning_rate = static_cast<float>(read_line(file, "learning_rate").at(0));
    const auto gradients = read_line(file, "gradients");
    for (int64_t i = 0; i < n; i++) test.gradients.set(i, static_cast<float>(gradients[i]));
    step.bias_correction1 = static_cast<float>(1 - std::pow(0.9, k));
    step.bias_correction2 = static_cast<float>(1 - std::pow(0.95, k));
    test.update(step);
    const auto weights = read_line(file, "weights");
    // Weights below 4 are rounded three times a step; updates of at most four learning rates are
    // right to about 16 roundings, and the options themselves were rounded to fp32.
    tolerance += 3 * 4 * kRounding + 4 * step.learning_rate * 20 * kRounding;
    for (int64_t i = 0; i < n; i++) ASSERT_NEAR(test.master[i], weights[i], tolerance) << k;
  }
  const auto exp_avg = read_line(file, "exp_avg"), exp_avg_sq = read_line(file, "exp_avg_sq");
  for (int64_t i = 0; i < n; i++) {
    EXPECT_NEAR(test.exp_avg[i], exp_avg[i], 20 * kRounding * 0.5);
    EXPECT_NEAR(test.exp_avg_sq[i], exp_avg_sq[i], 20 * kRounding * 0.5);
  }
}

TEST(AdamUpdate, TakesTheStepsOfPyTorchsAdamW) {
  Update step;
  step.weight_decay = 0.125f;
  expect_golden("adamw.txt", step);
}
TEST(AdamUpdate, TakesTheStepsOfPyTorchsAdam) {
  Update step;
  step.weight_decay = 0.0625f, step.decoupled = false;
  expect_golden("adam.txt", step);
}

}  // namespace
}  // namespace lockstep::kernels::tests
