#include <gmock/gmock.h>

#include <cstdlib>

#include "kernels/cuda/bias_gradient.h"
#include "kernels/matmul.h"
#include "kernels/product_algorithms.h"
#include "tests/kernels/on_device.h"

// On the emulated device alone, whose heuristic does what its environment says.
namespace lockstep::kernels::tests {
namespace {

using testing::HasSubstr;

// A process that starts with these variables.
void start_anew(const char* split_k, const char* epilogues = "1") {
  setenv("LOCKSTEP_EMULATION_SPLIT_K", split_k, 1);
  setenv("LOCKSTEP_EMULATION_EPILOGUES", epilogues, 1);
  reuse_product_algorithms({});
}

class ProductAlgorithmsTest : public testing::Test {
 protected:
  ProductAlgorithmsTest() { start_anew("1"); }
  ~ProductAlgorithmsTest() override { start_anew("1"); }

  // y and z of a layer with an activation, and its gradients: the bytes of all. In steps: by a call
  // for the product and one for what may be fused with it.
  static std::string run(int64_t outputs = 24, int64_t shift = 0, bool in_steps = false) {
    constexpr int64_t kRows = 40, kInputs = 56;
    Stream stream(Device::cuda);
    const auto put = [&](Shape shape, unsigned seed) {
      return OnDevice<bf16>(Values<bf16>::normal(shape, seed), stream, shift);
    };
    auto x = put({kRows, kInputs}, 1), weight = put({outputs, kInputs}, 2),
         bias = put({outputs}, 3), dx = put({kRows, kInputs}, 4), down = put({kInputs, outputs}, 5),
         y = put({kRows, outputs}, 6), z = put({kRows, outputs}, 7), dz = put({kRows, outputs}, 8);
    OnDevice<float> dweight(Values<float>({outputs, kInputs}), stream, shift),
        dbias(Values<float>({outputs}), stream, shift);
    const auto gelu = Activation::gelu_tanh;
    if (in_steps) {
      linear_forward(z.tensor(), x.tensor(), weight.tensor(), bias.tensor(), stream);
      activation_forward(y.tensor(), z.tensor(), gelu, stream);
      linear_backward_input(dz.tensor(), dx.tensor(), down.tensor(), stream);
      activation_backward(dz.tensor(), dz.tensor(), z.tensor(), gelu, stream);
      linear_backward_weight(dweight.tensor(), Tensor(), dz.tensor(), x.tensor(), stream);
      cuda::add_bias_gradient(dbias.tensor(), dz.tensor(), stream);
    } else {
      linear_activation_forward(y.tensor(), z.tensor(), x.tensor(), weight.tensor(), bias.tensor(),
                                gelu, stream);
      linear_activation_backward_input(dz.tensor(), dx.tensor(), down.tensor(), z.tensor(), gelu,
                                       stream);
      linear_backward_weight(dweight.tensor(), dbias.tensor(), dz.tensor(), x.tensor(), stream);
    }
    return y.values().bytes() + z.values().bytes() + dz.values().bytes() +
           dweight.values().bytes() + dbias.values().bytes();
  }

  // How many problems with that epilogue have an algorithm, and how many have none.
  static std::pair<int, int> count(const std::string& epilogue) {
    std::pair<int, int> counted;
    for (const auto& [problem, algorithm] : product_algorithms().by_problem) {
      if (problem.find(epilogue) == std::string::npos) continue;
      (algorithm.empty() ? counted.second : counted.first)++;
    }
    return counted;
  }
};

using Counts = std::pair<int, int>;
constexpr const char* kEpilogues[] = {", gelu,", ", gelu gradient;", ", row sums,"};

TEST_F(ProductAlgorithmsTest, EpiloguesAreFusedWhereTheyMayBe) {
  run();
  for (const char* epilogue : kEpilogues) EXPECT_EQ(count(epilogue), Counts(1, 0)) << epilogue;
  EXPECT_EQ(product_algorithms().by_problem.size(), 3u) << "nothing is computed twice";
}

// Rows of 12 elements, and rows that begin 2 bytes off.
TEST_F(ProductAlgorithmsTest, TheLibraryIsNotAskedForWhatItForbids) {
  run(12);
  run(24, 1);
  EXPECT_EQ(count(", gelu"), Counts(0, 0));
  EXPECT_EQ(count(", row sums,"), Counts(2, 0)) << "sums go through memory of ours";
}

TEST_F(ProductAlgorithmsTest, WhatIsNotFusedIsComputedInSteps) {
  const std::string fused = run();
  start_anew("1", "0");
  const std::string in_steps = run();
  EXPECT_NE(in_steps, fused) << "a step more rounds once more";
  for (const char* epilogue : kEpilogues) EXPECT_EQ(count(epilogue), Counts(0, 1)) << epilogue;
  EXPECT_EQ(run(24, 0, true), in_steps);
}

// Also that of having none, with a library that has one.
TEST_F(ProductAlgorithmsTest, WhatWasChosenIsTakenAgain) {
  for (const auto& [split, epilogues] : {std::pair{"2", "1"}, {"1", "0"}}) {
    start_anew(split, epilogues);
    const std::string bits = run();
    const ProductAlgorithms chosen = product_algorithms();
    start_anew("3");
    EXPECT_NE(run(), bits);
    reuse_product_algorithms(chosen.by_problem);
    EXPECT_EQ(run(), bits);
    EXPECT_EQ(product_algorithms().by_problem, chosen.by_problem);
    EXPECT_EQ(product_algorithms().num_refused, 0);
  }
}

TEST_F(ProductAlgorithmsTest, OtherProblemsGetTheirOwn) {
  run();
  const ProductAlgorithms few = product_algorithms();
  reuse_product_algorithms(few.by_problem);
  run(32);
  const ProductAlgorithms more = product_algorithms();
  EXPECT_EQ(more.by_problem.size(), 2 * few.by_problem.size());
  for (const auto& [problem, algorithm] : few.by_problem) {
    EXPECT_EQ(more.by_problem.at(problem), algorithm);
  }
}

TEST_F(ProductAlgorithmsTest, WhatTheLibraryRefusesIsChosenAnew) {
  const std::string bits = run();
  const ProductAlgorithms chosen = product_algorithms();
  auto given = chosen.by_problem;
  int64_t number = 0;
  for (auto& [problem, algorithm] : given) {
    if (number == 0) algorithm[0] = algorithm[0] == '0' ? '1' : '0';
    if (number == 1) algorithm = "not an algorithm";
    if (number == 2) algorithm[20] = 'x';
    number++;
  }
  ASSERT_EQ(number, 3);
  reuse_product_algorithms(given);
  testing::internal::CaptureStderr();
  EXPECT_EQ(run(), bits);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("no algorithm of ours"));
  EXPECT_EQ(product_algorithms().num_refused, 3);
  EXPECT_EQ(product_algorithms().by_problem, chosen.by_problem);
}

TEST_F(ProductAlgorithmsTest, SayWhatTheyAreOf) {
  EXPECT_THAT(product_algorithms().library, testing::MatchesRegex("cuBLASLt [0-9.]+"));
  EXPECT_EQ(product_algorithms().gpu, this_gpu(0).name);
}

}  // namespace
}  // namespace lockstep::kernels::tests
