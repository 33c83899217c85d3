#include "inference/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/check.h"
#include "data/prepare.h"
#include "tests/inference/golden.h"

namespace lockstep {
namespace {

using testing::Golden;
using testing::TemporaryFolder;

// Workers in threads of one process; evaluation needs one operation of them.
struct World {
  explicit World(int count) : size(count), barrier(count) {}
  const int size;
  std::barrier<> barrier;
  std::vector<double> sum;
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(World& world, int rank) : world_(world), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return world_.size; }
  void all_reduce(double* values, int64_t count, ReduceOp op) override {
    CHECK(op == ReduceOp::sum);
    for (int turn = 0; turn < size(); turn++) {
      if (turn == rank_) {
        world_.sum.resize(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; i++) {
          double& sum = world_.sum[static_cast<size_t>(i)];
          sum = (turn == 0 ? 0 : sum) + values[i];
        }
      }
      world_.barrier.arrive_and_wait();
    }
    std::copy(world_.sum.begin(), world_.sum.end(), values);
    world_.barrier.arrive_and_wait();
  }
  void all_reduce(const Tensor&, ReduceOp, Stream&) override { unused(); }
  void all_gather(const Tensor&, Stream&) override { unused(); }
  void reduce_scatter(const Tensor&, const Tensor&, Stream&) override { unused(); }
  void all_to_all(const Tensor&, const Tensor&, Stream&) override { unused(); }
  void broadcast(const Tensor&, int, Stream&) override { unused(); }
  void broadcast(std::string&, int) override { unused(); }
  std::vector<std::string> gather(const std::string&) override { unused(); }
  void barrier() override { unused(); }
  std::unique_ptr<Communicator> duplicate() override { unused(); }
  void set_purpose(const std::string&) override {}
  void set_deadline(double) override {}
  void cancel() override { unused(); }

 private:
  [[noreturn]] static void unused() { throw std::logic_error("evaluation does not need this"); }
  World& world_;
  int rank_;
};

class EvaluateOf : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string text = golden_.index.at("text");
    std::ofstream(folder_ / "text.txt") << text;
    PrepareConfig config;
    config.inputs = {folder_ / "text.txt"};
    config.output = folder_ / "data";
    config.tokenizer = "bytes";
    config.validation_fraction = 0;
    prepare(config);
    dataset_ = Dataset::open(config.output);
    ASSERT_EQ(split().size(), static_cast<int64_t>(text.size()) + 1);
  }
  const TokenStream& split() const { return dataset_.split("train"); }

  Evaluation run(int workers, int64_t window, int64_t micro_batch,
                 const EvaluationOptions& evaluation = {}) {
    World world(workers);
    std::vector<Evaluation> results(static_cast<size_t>(workers));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < workers; rank++) {
      threads.emplace_back([&, rank] {
        Transformer::Options options;
        options.training = false;
        options.micro_batch_size = micro_batch;
        options.sequence_length = window;
        Transformer model(golden_.config, options);
        std::copy(golden_.weights.begin(), golden_.weights.end(), model.weights().as<float>());
        ThreadCommunicator communicator(world, rank);
        results[static_cast<size_t>(rank)] = evaluate(model, split(), communicator, evaluation);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Evaluation& result : results) EXPECT_EQ(result.loss, results[0].loss);
    return results[0];
  }

  TemporaryFolder folder_;
  Golden golden_{GetParam()};
  Dataset dataset_;
};

// PyTorch in float64. Ours rounds to fp32, which moves a logit by some 1e-5 and the mean loss, of
// 230 tokens whose errors differ in sign, by less: 1e-5 relative.
TEST_P(EvaluateOf, IsTheLossOfEveryTokenButTheFirst) {
  for (const auto& [window, nats] : golden_.index.at("nats").items()) {
    for (const int64_t micro_batch : {1, 2, 16}) {
      const Evaluation e = run(1, std::stoll(window), micro_batch);
      EXPECT_EQ(e.tokens, split().size() - 1);
      EXPECT_EQ(e.bytes, split().size() - 1);  // one token is no byte, another not predicted
      const double want = nats.get<double>() / static_cast<double>(e.tokens);
      EXPECT_NEAR(e.loss, want, 1e-5 * want);
      EXPECT_DOUBLE_EQ(e.perplexity, std::exp(e.loss));
      const double bits = e.loss * static_cast<double>(e.tokens) / std::log(2);
      EXPECT_NEAR(e.bits_per_byte, bits / static_cast<double>(e.bytes), 1e-12);
    }
  }
}

TEST_P(EvaluateOf, IsTheSameFigureForAnyNumberOfWorkers) {
  for (const int64_t micro_batch : {1, 3}) {
    const Evaluation one = run(1, 20, micro_batch);
    for (const int workers : {2, 3, 4, 7}) {  // 12 windows; some workers have none
      const Evaluation e = run(workers, 20, micro_batch);
      EXPECT_EQ(e.loss, one.loss) << workers;
      EXPECT_EQ(e.bits_per_byte, one.bits_per_byte) << workers;
    }
  }
}

TEST_P(EvaluateOf, TakesTheFirstWindowsWhenAsked) {
  const Evaluation all = run(1, 20, 4), part = run(2, 20, 4, {.max_windows = 3}),
                   more = run(1, 20, 4, {.max_windows = 100});
  EXPECT_EQ(part.tokens, 60);
  EXPECT_EQ(part.bytes, 60);
  EXPECT_NEAR(part.bits_per_byte, part.loss / std::log(2), 1e-12);
  EXPECT_NE(part.loss, all.loss);
  EXPECT_EQ(more.loss, all.loss);
}

// As above, each token from at least the window less the stride.
TEST_P(EvaluateOf, SlidesByTheStride) {
  const auto golden =
      nlohmann::json::parse(read_file(Golden::path("decoding.json"))).at(GetParam()).at("strided");
  EXPECT_EQ(golden.size(), 3u);
  for (const auto& [sizes, nats] : golden.items()) {
    const int64_t window = std::stoll(sizes),
                  stride = std::stoll(sizes.substr(sizes.find('/') + 1));
    const Evaluation one = run(1, window, 4, {.stride = stride});
    EXPECT_EQ(one.tokens, split().size() - 1) << sizes;
    EXPECT_EQ(one.bytes, split().size() - 1);
    const double want = nats.get<double>() / static_cast<double>(one.tokens);
    EXPECT_NEAR(one.loss, want, 1e-5 * want) << sizes;
    EXPECT_EQ(run(3, window, 4, {.stride = stride}).loss, one.loss) << sizes;
  }
  EXPECT_EQ(run(1, 20, 4, {.stride = 20}).loss, run(1, 20, 4).loss);
  const Evaluation part = run(1, 20, 4, {.max_windows = 3, .stride = 7});
  EXPECT_EQ(part.tokens, 20 + 2 * 7);
}

TEST_P(EvaluateOf, GivesAnIntervalWhenAsked) {
  EXPECT_FALSE(run(1, 20, 4).loss_interval);
  const Evaluation e = run(1, 20, 4, {.resamples = 400});
  ASSERT_TRUE(e.loss_interval);
  EXPECT_LT(e.loss_interval->low, e.loss);
  EXPECT_GT(e.loss_interval->high, e.loss);
  const Evaluation two = run(2, 20, 4, {.resamples = 400});
  EXPECT_EQ(two.loss_interval->low, e.loss_interval->low);
  EXPECT_EQ(two.loss_interval->high, e.loss_interval->high);
  const auto json = to_json(e);
  EXPECT_EQ(json.at("loss_interval")[0], e.loss_interval->low);
  EXPECT_EQ(json.at("loss_interval")[1], e.loss_interval->high);
}

TEST_P(EvaluateOf, IsWrittenAsJson) {
  const auto json = to_json(run(1, 48, 4));
  EXPECT_EQ(json.size(), 5u);
  EXPECT_GT(json.at("loss"), 5);
  EXPECT_GT(json.at("perplexity"), 100);
  EXPECT_GT(json.at("bits_per_byte"), 7);
  EXPECT_EQ(json.at("tokens"), split().size() - 1);
  EXPECT_EQ(json.at("bytes"), split().size() - 1);
}

INSTANTIATE_TEST_SUITE_P(, EvaluateOf, ::testing::Values("gpt2", "llama"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace lockstep
