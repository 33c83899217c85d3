#include "launch/train_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace lockstep::launch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Parsed {
  TrainOptions options;
  OptionTable table = train_table(options);
  explicit Parsed(const std::vector<std::string>& arguments) { table.parse(arguments); }
  Parsed(const Parsed&) = delete;
};

Surroundings usual(int workers = 1) {
  Surroundings surroundings;
  surroundings.vocab_size = 1000;
  surroundings.workers = workers;
  return surroundings;
}

TrainConfig resolved(const std::vector<std::string>& arguments, const Surroundings& surroundings) {
  Parsed parsed(arguments);
  return resolve_train(parsed.options, parsed.table, surroundings);
}

std::string error_of(const std::vector<std::string>& arguments,
                     const Surroundings& surroundings = usual()) {
  try {
    resolved(arguments, surroundings);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(TrainOptions, HaveSensibleDefaults) {
  const TrainConfig config = resolved({"--data", "d", "--run", "r"}, usual());
  EXPECT_EQ(config.model.family, Family::gpt2);
  EXPECT_EQ(config.model.vocab_size, 1000);
  EXPECT_EQ(config.model.num_layers, 4);
  EXPECT_EQ(config.model.ffn_size, 4 * config.model.hidden_size);
  EXPECT_EQ(config.steps, 1000);
  EXPECT_EQ(config.schedule.warmup_steps, 50);
  EXPECT_NEAR(config.schedule.learning_rate, 0.46 / 256, 1e-12);
  EXPECT_EQ(config.batch_size, 16);
  EXPECT_EQ(config.micro_batch_size, 16);  // of 256 tokens: 4096
  EXPECT_EQ(config.precision, DType::fp32);
  EXPECT_FALSE(config.loss_scale.has_value());
}

TEST(TrainOptions, ARunIsDefinedOverVirtualWorkers) {
  const TrainConfig usual_run = resolved({"--data", "d"}, usual(3));
  EXPECT_EQ(usual_run.reduce, Reduce::ordered);
  EXPECT_EQ(usual_run.virtual_workers, 3);
  EXPECT_EQ(usual_run.gradient_dtype, DType::fp32);
  EXPECT_EQ(usual_run.batch_size, 18);  // the usual 16, rounded up
  const TrainConfig given = resolved(
      {"--virtual-workers", "6", "--batch-size", "24", "--gradient-dtype", "bf16"}, usual(3));
  EXPECT_EQ(given.virtual_workers, 6);
  EXPECT_EQ(given.micro_batch_size, 4);
  EXPECT_EQ(given.gradient_dtype, DType::bf16);
  EXPECT_EQ(resolved({"--no-deterministic"}, usual(3)).reduce, Reduce::all_reduce);
  EXPECT_EQ(resolved({"--deterministic"}, usual(3)).reduce, Reduce::ordered);
  const TrainConfig library = resolved({"--reduce", "all-reduce"}, usual(3));
  EXPECT_EQ(library.virtual_workers, 3);
}

TEST(TrainOptions, RefusesReductionsThatContradict) {
  EXPECT_THAT(error_of({"--virtual-workers", "24"}, usual(5)),
              AllOf(HasSubstr("the 24 virtual workers of the run cannot be dealt to 5 workers"),
                    HasSubstr("1, 2, 3, 4, 6, 8, 12, 24")));
  EXPECT_THAT(error_of({"--no-deterministic", "--reduce", "ordered"}),
              HasSubstr("--no-deterministic contradicts --reduce ordered"));
  EXPECT_THAT(error_of({"--reduce", "all-reduce", "--virtual-workers", "2"}),
              HasSubstr("--virtual-workers is of use with --reduce ordered only"));
  EXPECT_THAT(error_of({"--no-deterministic", "--gradient-dtype", "bf16"}),
              HasSubstr("--gradient-dtype is of use with --reduce ordered only"));
  EXPECT_THAT(error_of({"--virtual-workers", "6", "--batch-size", "16"}),
              HasSubstr("--batch-size 16 is not divisible by 6 virtual workers"));
}

TEST(TrainOptions, SizesDeriveWhatIsNotGiven) {
  const TrainConfig config = resolved(
      {"--family", "llama", "--hidden-size", "384", "--heads", "6", "--kv-heads", "2"}, usual());
  EXPECT_EQ(config.model.ffn_size, 1024);  // 8/3 of 384
  EXPECT_EQ(config.model.head_dim, 64);
  EXPECT_EQ(config.model.num_kv_heads, 2);
  EXPECT_EQ(config.model.activation, kernels::Activation::silu);
}

TEST(TrainOptions, PresetsTakeNoSizesBesideThem) {
  const TrainConfig config = resolved({"--model", "gpt2-124m", "--context-length", "128"}, usual());
  EXPECT_EQ(config.model.num_layers, 12);
  EXPECT_EQ(config.model.context_length, 128);
  EXPECT_NEAR(config.schedule.learning_rate, 6e-4, 2e-6);
  EXPECT_THAT(error_of({"--model", "gpt2-124m", "--layers", "6"}),
              AllOf(HasSubstr("--layers"), HasSubstr("--model gpt2-124m")));
  EXPECT_THAT(error_of({"--model", "gpt2-125m"}), HasSubstr("gpt2-124m"));
}

TEST(TrainOptions, BatchesMustDivide) {
  EXPECT_EQ(resolved({}, usual(3)).batch_size, 18);
  EXPECT_THAT(
      error_of({"--batch-size", "16"}, usual(3)),
      AllOf(HasSubstr("--batch-size 16 is not divisible by 3 workers"), HasSubstr("15 and 18")));
  EXPECT_THAT(error_of({"--batch-size", "12", "--micro-batch-size", "5"}, usual(2)),
              AllOf(HasSubstr("--micro-batch-size 5"), HasSubstr("choose one of 1, 2, 3, 6")));
  // Two workers have 24 each; at most 4096 tokens: 16 of 256, and 12 is the divisor below.
  EXPECT_EQ(resolved({"--batch-size", "48"}, usual(2)).micro_batch_size, 12);
}

TEST(TrainOptions, ContradictionsAreNamed) {
  EXPECT_THAT(error_of({"--heads", "5"}), AllOf(HasSubstr("5 heads"), HasSubstr("256")));
  EXPECT_THAT(error_of({"--warmup-steps", "200", "--steps", "100"}),
              AllOf(HasSubstr("--warmup-steps 200"), HasSubstr("100 steps")));
  EXPECT_THAT(error_of({"--loss-scale", "1024"}), HasSubstr("--precision fp16"));
  EXPECT_THAT(error_of({"--loss-scale", "high"}), HasSubstr("dynamic or a number above 0"));
  EXPECT_EQ(resolved({"--loss-scale", "1024", "--precision", "fp16"}, usual()).loss_scale, 1024);
}

TEST(TrainOptions, CudaNeedsAGpu) {
  if (cuda_device_count() > 0) GTEST_SKIP() << "there is a GPU here";
  EXPECT_THROW(check_device({.device = DeviceChoice::cuda, .threads = {}}), DeviceError);
  EXPECT_NO_THROW(check_device({}));
}

TEST(TrainOptions, PrecisionFollowsTheMachine) {
  Surroundings fast = usual();
  fast.fast_bf16 = true;
  EXPECT_EQ(resolved({}, fast).precision, DType::bf16);
  EXPECT_EQ(resolved({"--precision", "fp32"}, fast).precision, DType::fp32);
  EXPECT_EQ(resolved({"--precision", "bf16"}, usual()).precision, DType::bf16);
}

TEST(TrainOptions, GivenWeightsFixTheArchitecture) {
  Surroundings tuning = usual();
  tuning.weights = preset("llama-60m");
  tuning.weights->vocab_size = 32000;
  const TrainConfig config = resolved({"--initialize-from", "there"}, tuning);
  EXPECT_EQ(config.model, *tuning.weights);
  EXPECT_NEAR(config.schedule.learning_rate, 0.1 * 0.46 / 512, 1e-12);
  EXPECT_THAT(error_of({"--initialize-from", "there", "--layers", "3"}, tuning),
              AllOf(HasSubstr("--layers"), HasSubstr("8")));
  EXPECT_THAT(error_of({"--initialize-from", "there", "--model", "gpt2-124m"}, tuning),
              HasSubstr("--model gpt2-124m contradicts"));
}

// run.cfg, written with what was resolved, leads to the same configuration.
TEST(TrainOptions, WrittenOptionsLeadToTheSameConfiguration) {
  const std::vector<std::vector<std::string>> commands = {
      {"--data", "d", "--run", "r", "--seed", "18446744073709551615", "--recompute"},
      {"--data", "d", "--run", "r", "--model", "llama-1b", "--precision", "fp16", "--loss-scale",
       "512", "--schedule", "wsd", "--optimizer", "adam", "--clip-norm", "0"},
      {"--data", "d", "--run", "r", "--family", "llama", "--kv-heads", "2", "--dropout", "0.1"}};
  const auto file = std::filesystem::temp_directory_path() /
                    ("lockstep-train-options-" + std::to_string(getpid()) + ".cfg");
  for (const auto& arguments : commands) {
    Parsed first(arguments);
    const TrainConfig a = resolve_train(first.options, first.table, usual(2));
    std::ofstream(file) << first.table.to_config_file("# test\n");
    Parsed second({"--run", "r"});
    second.table.read_file(file);
    const TrainConfig b = resolve_train(second.options, second.table, usual(2));
    EXPECT_EQ(a.model, b.model);
    EXPECT_EQ(a.data, b.data);
    EXPECT_EQ(a.seed, b.seed);
    EXPECT_EQ(a.batch_size, b.batch_size);
    EXPECT_EQ(a.micro_batch_size, b.micro_batch_size);
    EXPECT_EQ(a.precision, b.precision);
    EXPECT_EQ(a.loss_scale, b.loss_scale);
    EXPECT_EQ(a.recompute, b.recompute);
    EXPECT_EQ(a.optimizer.kind, b.optimizer.kind);
    EXPECT_EQ(a.optimizer.clip_norm, b.optimizer.clip_norm);
    EXPECT_EQ(a.schedule.schedule, b.schedule.schedule);
    EXPECT_EQ(a.schedule.learning_rate, b.schedule.learning_rate);
    EXPECT_EQ(a.schedule.warmup_steps, b.schedule.warmup_steps);
    EXPECT_EQ(a.checkpoint_every, b.checkpoint_every);
  }
  std::filesystem::remove(file);
}

TEST(TrainOptions, APresetOnTheCommandLineReplacesWrittenSizes) {
  Parsed given({"--model", "gpt2-124m"});
  EXPECT_TRUE(superseded(given.table, "layers"));
  EXPECT_FALSE(superseded(given.table, "context-length"));
  Parsed sizes({"--layers", "6"});
  EXPECT_TRUE(superseded(sizes.table, "model"));
  EXPECT_FALSE(superseded(sizes.table, "hidden-size"));
}

}  // namespace
}  // namespace lockstep::launch
