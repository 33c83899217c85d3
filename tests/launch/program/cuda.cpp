#include <cmath>

#include "tests/launch/program/world.h"

// What a user of GPUs meets, on the emulated device; and what one meets who has none.
namespace lockstep::black_box {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

World& world = World::get();

struct Cuda : testing::Test {
  static Result train(const std::string& name, const Arguments& more, const Options& options) {
    Arguments arguments = train_arguments(world.data(), world.path(name), {"--steps", "3"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, options);
  }
  static std::vector<double> losses(const std::string& name) {
    std::vector<double> all;
    for (const std::string& line : lines_of(read_text(world.path(name) / "metrics.jsonl"))) {
      all.push_back(json::parse(line).at("loss"));
    }
    return all;
  }
  static Options gpus(int count, int workers = 0) {
    return {.workers = workers,
            .emulated = true,
            .environment = {"LOCKSTEP_EMULATION_DEVICES=" + std::to_string(count)}};
  }
  static json doctor(const Options& options, int code = 0) {
    const Result result = run({"doctor", "--json"}, options);
    EXPECT_EQ(result.code, code) << result.err << result.out;
    return json::parse(result.out);
  }
  static bool has_problem(const json& report, const std::string& what) {
    for (const json& problem : report.at("problems")) {
      if (problem.at("what").get<std::string>().find(what) != std::string::npos) return true;
    }
    return false;
  }
};

TEST_F(Cuda, WithoutAGpu) {
  if (!doctor({})["workers"][0]["cuda"]["gpus"].empty()) GTEST_SKIP() << "there is a GPU here";
  const std::vector<std::string> message{"--device cuda: CUDA finds no GPU here",
                                         "'lockstep doctor' tells more"};
  for (const int workers : {0, 2}) {
    const Result result = train("nowhere", {"--device", "cuda"}, {.workers = workers});
    expect_error(result, 4, message);
    const auto own = lines_of(without_mpirun(result.err));
    EXPECT_EQ(own.size(), 1u) << result.err;
  }
  expect_error(run({"generate", "--checkpoint", world.run(), "--prompt", "x", "--device", "cuda"}),
               4, message);
  expect_error(
      run({"evaluate", "--checkpoint", world.run(), "--data", world.data(), "--device", "cuda"}), 4,
      message);
  EXPECT_FALSE(std::filesystem::exists(world.path("nowhere")));
}

TEST_F(Cuda, MoreWorkersThanGpus) {
  expect_error(train("crowd", {"--device", "cuda"}, gpus(1, 2)), 4,
               {"2 workers of ", " for 1 GPU,", "one worker a GPU", "--share-gpu"});
  expect_error(train("crowd", {"--device", "auto"}, gpus(2, 3)), 4,
               {"3 workers of ", " for 2 GPUs,"});
  EXPECT_FALSE(std::filesystem::exists(world.path("crowd")));
}

// As a batch system does it that gives GPUs to tasks.
TEST_F(Cuda, WorkersThatSeeAGpuOfTheirOwn) {
  Options options = gpus(2, 2);
  options.prelude = "export CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_RANK";
  const Result result = train("own_gpus", {"--device", "cuda"}, options);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_FALSE(has_problem(doctor(options), "but 1 GPU"));
  options.prelude = "export CUDA_VISIBLE_DEVICES=1";  // the same for both
  expect_error(train("one_gpu", {"--device", "cuda"}, options), 4, {"2 workers of ", "for 1 GPU,"});
  EXPECT_EQ(train("one_gpu", {"--device", "cuda", "--share-gpu"}, options).code, 0);
}

TEST_F(Cuda, WorkersThatDiffer) {
  Options options = gpus(2, 2);
  options.prelude = "[ $OMPI_COMM_WORLD_RANK = 0 ] || export LOCKSTEP_EMULATION_GPU=a100";
  const std::string gpu = "GPU is NVIDIA H100 80GB HBM3 (emulated), architecture 9.0, 132 ";
  expect_error(train("unlike", {"--device", "cuda"}, options), 4,
               {"the workers differ", gpu, "for worker 0 on", "NVIDIA A100", "for worker 1 on"});
  EXPECT_TRUE(has_problem(doctor(options, 4), gpu));
  options.prelude = "[ $OMPI_COMM_WORLD_RANK = 0 ] || export LOCKSTEP_EMULATION_DRIVER=13090";
  expect_error(train("unlike", {"--device", "cuda"}, options), 4,
               {"driver is for CUDA", "but for CUDA 13.9 for worker 1"});
  EXPECT_EQ(train("on_cpus", {"--device", "cpu"}, options).code, 0);
  EXPECT_FALSE(std::filesystem::exists(world.path("unlike")));
}

TEST_F(Cuda, AGpuOfAnOldArchitecture) {
  Options old = gpus(1);
  old.environment.push_back("LOCKSTEP_EMULATION_GPU=v100");
  const std::string what = "is of architecture 7.0; 8.0 or newer is needed";
  expect_error(train("old_gpu", {"--device", "cuda"}, old), 4,
               {"GPU 0 (Tesla V100", what, "--device cpu"});
  EXPECT_FALSE(std::filesystem::exists(world.path("old_gpu")));
  const Result result = train("old_gpu", {"--device", "auto"}, old);
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("--device auto is cpu: GPU 0"));
  EXPECT_TRUE(has_problem(doctor(old, 4), what));
}

TEST_F(Cuda, WorkersThatShareAGpuGetTheSameBits) {
  ASSERT_EQ(train("alone", {"--device", "cuda"}, gpus(1)).code, 0);
  const Result shared = train("shared", {"--device", "cuda", "--share-gpu"}, gpus(1, 2));
  ASSERT_EQ(shared.code, 0) << shared.err;
  EXPECT_EQ(losses("alone"), losses("shared"));
  const Result same =
      run({"checkpoint", "diff", world.path("alone").string(), world.path("shared").string()});
  EXPECT_EQ(same.code, 0) << same.out << same.err;
}

TEST_F(Cuda, NcclMissingOrTooOld) {
  for (const auto& [version, what] :
       {std::pair{"0", "no NCCL: libnccl.so.2 is not found"},
        {"21803", "NCCL 2.18.3 is too old: 2.19.0 or newer is needed"}}) {
    Options options = gpus(2, 2);
    options.environment.push_back(std::string("LOCKSTEP_EMULATION_NCCL=") + version);
    expect_error(train("no_nccl", {"--device", "cuda"}, options), 4, {what, "LD_LIBRARY_PATH"});
    EXPECT_FALSE(std::filesystem::exists(world.path("no_nccl")));
    const json report = doctor(options, 4);
    EXPECT_TRUE(has_problem(report, what));
    EXPECT_THAT(report.at("gpu_links").at("obstacle"), HasSubstr(what));
    options.workers = 1;  // which needs none
    EXPECT_EQ(train(std::string("alone") + version, {"--device", "cuda"}, options).code, 0);
  }
}

// Where one worker's NCCL registers no memory, none does; and nothing else is different.
TEST_F(Cuda, WithAndWithoutMemoryThatNcclKnows) {
  Options options = gpus(2, 2);
  options.environment.push_back("LOCKSTEP_EMULATION_LEAKS=fail");
  const Result with = train("registered", {"--device", "cuda"}, options);
  options.prelude = "[ $OMPI_COMM_WORLD_RANK = 0 ] || export NCCL_LOCAL_REGISTER=0";
  const Result without = train("not_registered", {"--device", "cuda"}, options);
  for (const Result& result : {with, without}) {
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, Not(HasSubstr("emulated device:")));
  }
  const Result same = run({"checkpoint", "diff", world.path("registered").string(),
                           world.path("not_registered").string()});
  EXPECT_EQ(same.code, 0) << same.out << same.err;
}

TEST_F(Cuda, TrainsAsTheCpuDoes) {
  ASSERT_EQ(train("on_cpu", {"--device", "cpu"}, {}).code, 0);
  ASSERT_EQ(train("on_gpu", {"--device", "cuda"}, gpus(1)).code, 0);
  const auto cpu = losses("on_cpu"), gpu = losses("on_gpu");
  ASSERT_EQ(cpu.size(), gpu.size());
  // Sums of a few hundred terms in fp32, in another order, moved by two updates of 1e-2.
  for (size_t i = 0; i < cpu.size(); i++) EXPECT_NEAR(cpu[i], gpu[i], 1e-4 * cpu[i]) << i;
}

// A model of 0.4 million parameters, whose activations of 2,048 tokens need 44 MiB.
Arguments large(const std::string& name, const Arguments& more = {}) {
  Arguments all{"train",
                "--data",
                world.data(),
                "--run",
                world.path(name),
                "--layers",
                "2",
                "--heads",
                "2",
                "--hidden-size",
                "128",
                "--context-length",
                "32",
                "--batch-size",
                "64",
                "--virtual-workers",
                "2",
                "--steps",
                "1",
                "--precision",
                "fp32",
                "--device",
                "cuda",
                "--threads",
                "1"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

constexpr const char* kPlan[] = {"weights  ",     "gradients  ", "moments  ", "reduction buffers",
                                 "activations  ", "workspace  ", "inputs  ",  "sum  "};

TEST_F(Cuda, APlanThatDoesNotFitIsRefusedBeforeAnythingIsAllocated) {
  for (const int workers : {1, 2}) {
    Options small = gpus(2, workers);
    small.environment.push_back("LOCKSTEP_EMULATION_MEMORY_MB=50");
    const Result result = run(large("too_large", {"--micro-batch-size", "32"}), small);
    expect_error(result, 4,
                 {"worker 0 on ", "of its GPU's 50.0 MiB, of which 50.0 MiB are free",
                  "--micro-batch-size 8 fits", "--recompute with --micro-batch-size 16 fits"});
    for (const char* part : kPlan) EXPECT_THAT(result.err, HasSubstr(part));
    EXPECT_FALSE(std::filesystem::exists(world.path("too_large")));
    // What is said to fit does.
    const std::string name = "fits_" + std::to_string(workers);
    EXPECT_EQ(run(large(name + "a", {"--micro-batch-size", "8"}), small).code, 0);
    EXPECT_EQ(run(large(name + "b", {"--micro-batch-size", "16", "--recompute"}), small).code, 0);
  }
  Options tiny = gpus(1);
  tiny.environment.push_back("LOCKSTEP_EMULATION_MEMORY_MB=8");
  expect_error(run(large("too_large"), tiny), 4,
               {"not even --recompute --micro-batch-size 1 fits", "more workers"});
}

TEST_F(Cuda, TheWorkerWhoseGpuIsFullIsNamed) {
  Options options = gpus(2, 2);
  options.prelude = "[ $OMPI_COMM_WORLD_RANK = 0 ] || export LOCKSTEP_EMULATION_MEMORY_MB=50";
  expect_error(run(large("too_large", {"--micro-batch-size", "32"}), options), 4,
               {"worker 1 on ", "of its GPU's 50.0 MiB", "--micro-batch-size 8 fits"});
}

// Another program allocates while the run starts.
TEST_F(Cuda, OutOfGpuMemoryThoughThePlanFits) {
  Options options = gpus(1);
  options.environment = {"LOCKSTEP_EMULATION_MEMORY_MB=100",
                         "LOCKSTEP_EMULATION_MEMORY_TAKEN_MB=80"};
  const Result result = run(large("squeezed", {"--micro-batch-size", "32"}), options);
  expect_error(result, 4,
               {"out of device memory", "of the device's 100.0 MiB are free",
                "reduce --micro-batch-size", "--recompute"});
  for (const char* part : kPlan) EXPECT_THAT(result.err, HasSubstr(part));
}

TEST_F(Cuda, EvaluatesAsTheCpuDoes) {
  const Arguments arguments{"evaluate",   "--checkpoint", world.run(), "--data",
                            world.data(), "--precision",  "fp32",      "--json"};
  Arguments on_cpu = arguments, on_gpu = arguments;
  on_cpu.insert(on_cpu.end(), {"--device", "cpu"});
  on_gpu.insert(on_gpu.end(), {"--device", "cuda"});
  const Result cpu = run(on_cpu), gpu = run(on_gpu, gpus(1)), two = run(on_gpu, gpus(2, 2));
  ASSERT_EQ(cpu.code, 0) << cpu.err;
  ASSERT_EQ(gpu.code, 0) << gpu.err;
  EXPECT_EQ(gpu.out, two.out);
  const double expected = json::parse(cpu.out)["loss"], found = json::parse(gpu.out)["loss"];
  EXPECT_NEAR(found, expected, 1e-5 * expected);  // fp32 sums in another order
  EXPECT_EQ(json::parse(cpu.out)["tokens"], json::parse(gpu.out)["tokens"]);
}

TEST_F(Cuda, GeneratesAsTheCpuDoes) {
  const Arguments arguments{"generate",     "--checkpoint", world.run(),   "--prompt", "The quick",
                            "--max-tokens", "20",           "--precision", "fp32",     "--greedy"};
  Arguments on_cpu = arguments, on_gpu = arguments;
  on_cpu.insert(on_cpu.end(), {"--device", "cpu"});
  on_gpu.insert(on_gpu.end(), {"--device", "cuda"});
  const Result cpu = run(on_cpu), gpu = run(on_gpu, gpus(1));
  ASSERT_EQ(cpu.code, 0) << cpu.err;
  ASSERT_EQ(gpu.code, 0) << gpu.err;
  EXPECT_EQ(gpu.out, cpu.out);
}

TEST_F(Cuda, DoctorTellsOfTheGpus) {
  const json report = doctor(gpus(2, 2));
  EXPECT_EQ(report.at("device"), "cuda");
  EXPECT_EQ(report.at("precision"), "bf16");
  EXPECT_GT(report.at("gpu_bf16_flops").get<double>(), 0);
  EXPECT_GT(report.at("gpu_fp32_flops").get<double>(), 0);
  for (int rank = 0; rank < 2; rank++) {
    const json cuda = report.at("workers")[static_cast<size_t>(rank)].at("cuda");
    EXPECT_EQ(cuda.at("gpus").size(), 2u);
    EXPECT_EQ(cuda.at("gpu"), rank);
    EXPECT_EQ(cuda.at("gpus")[0].at("architecture"), 90);
    EXPECT_GE(cuda.at("driver").get<int>(), 12000);
    EXPECT_GE(cuda.at("runtime").get<int>(), 12000);
    EXPECT_EQ(cuda.at("nccl").at("built"), cuda.at("nccl").at("loaded"));
    EXPECT_EQ(cuda.at("cublaslt").at("built"), cuda.at("cublaslt").at("loaded"));
    EXPECT_EQ(cuda.at("cudnn").at("obstacle"), "this build is without cuDNN");  // to emulate
  }
  EXPECT_TRUE(has_problem(doctor(gpus(1, 2), 4), "2 workers, but 1 GPU"));

  const Result text = run({"doctor"}, gpus(2));
  EXPECT_EQ(text.code, 0) << text.err;
  for (const char* part :
       {"GPUs ", "2 x NVIDIA H100", "architecture 9.0", "driver ", "NCCL ", "cuBLASLt ", "cuDNN ",
        "GPU products", "--device auto trains on GPUs", "at most "}) {
    EXPECT_THAT(text.out, HasSubstr(part));
  }
}

TEST_F(Cuda, DoctorMeasuresNccl) {
  const json links = doctor(gpus(2, 2)).at("gpu_links");
  EXPECT_EQ(links.at("workers"), 2);
  for (const char* algorithm : {"choice", "ring", "tree"}) {
    const json& measured = links.at("algorithms").at(algorithm);
    EXPECT_FALSE(measured.contains("failure"));
    EXPECT_GE(measured.at("rates").size(), 3u);
    const json& first = measured.at("rates").at(0);
    EXPECT_EQ(first.at("size_bytes"), 8);
    EXPECT_GT(first.at("seconds").get<double>(), 0);
    EXPECT_EQ(first.at("bus_bytes_per_second"), first.at("algorithm_bytes_per_second"));
  }

  Options ring = gpus(2, 2);
  ring.environment.push_back("LOCKSTEP_EMULATION_NCCL_ALGORITHMS=Ring");
  const Result text = run({"doctor"}, ring);
  EXPECT_EQ(text.code, 0) << text.err;
  for (const char* part : {"NCCL's all-reduce over 2 GPUs", "NCCL's choice", "ring", "8 bytes",
                           "NCCL's all-reduce by tree does not work", "NCCL_ALGO is not Tree"}) {
    EXPECT_THAT(text.out, HasSubstr(part));
  }

  Options none = gpus(2, 2);
  none.environment.push_back("LOCKSTEP_EMULATION_NCCL_ALGORITHMS=");
  const json report = doctor(none, 4);
  EXPECT_TRUE(has_problem(report, "NCCL does not work between the GPUs"));
  EXPECT_FALSE(report.at("gpu_links").at("algorithms").contains("ring"));
}

// What NCCL would refuse or wait for in vain is not tried.
TEST_F(Cuda, DoctorSaysWhyItDoesNotMeasureNccl) {
  const auto obstacle = [](const Options& options, int code) {
    return doctor(options, code).at("gpu_links").at("obstacle").get<std::string>();
  };
  EXPECT_THAT(obstacle(gpus(1, 2), 4), HasSubstr("has no GPU of its own"));
  EXPECT_THAT(obstacle(gpus(2), 0), HasSubstr("one worker alone"));
  Options some = gpus(2, 2);
  some.prelude = "[ $OMPI_COMM_WORLD_RANK = 0 ] || export CUDA_VISIBLE_DEVICES=";
  const Result text = run({"doctor"}, some);
  EXPECT_THAT(text.out, HasSubstr("not measured  worker 1 on "));
  EXPECT_THAT(text.out, HasSubstr("has no GPU to use"));
}

TEST_F(Cuda, DoctorWithoutAGpu) {
  const json report = doctor({});
  const json cuda = report.at("workers")[0].at("cuda");
  if (!cuda.at("gpus").empty()) GTEST_SKIP() << "there is a GPU here";
  EXPECT_EQ(report.at("device"), "cpu");
  EXPECT_FALSE(report.contains("gpu_bf16_flops"));
  EXPECT_FALSE(report.contains("gpu_links"));
  EXPECT_TRUE(has_problem(report, cuda.at("driver") == 0 ? "no NVIDIA driver" : "GPU"));
  // Of the libraries themselves, which answer without a driver.
  EXPECT_NE(cuda.at("nccl").at("loaded"), "");
  EXPECT_NE(cuda.at("cublaslt").at("loaded"), "");
}

}  // namespace
}  // namespace lockstep::black_box
