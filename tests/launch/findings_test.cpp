#include "launch/findings.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/worker_gpus.h"

namespace lockstep::launch {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
constexpr int64_t kGiB = int64_t{1} << 30;

// What a build without CUDA reports.
json no_cuda() { return {{"built", false}, {"gpus", json::array()}, {"gpu", -1}}; }

// A host with sound GPUs.
json cuda(int gpus) {
  std::vector<json> all;
  for (int i = 0; i < gpus; i++) {
    all.push_back({{"id", fmt::format("GPU-{}", i)},
                   {"name", "H100"},
                   {"architecture", 90},
                   {"memory_bytes", int64_t{80} << 30}});
  }
  const json version = {{"built", "2.28.9"}, {"loaded", "2.28.9"}};
  return {{"built", true},
          {"driver", 13000},
          {"runtime", 13000},
          {"runtime_built", 13000},
          {"cublaslt", version},
          {"nccl", version},
          {"cudnn", {{"version", "9.19.0"}, {"obstacle", ""}}},
          {"gpus", all},
          {"gpu", gpus > 0 ? 0 : -1}};
}

// A worker with nothing wrong.
json worker(int rank, const std::string& host, std::vector<int> cores) {
  return {{"rank", rank},
          {"host", host},
          {"version", "1"},
          {"traits", to_json({{"lockstep", "1"}, {"GPU", "H100"}})},
          {"mpi", "MPI 4"},
          {"product_library", "oneDNN 2"},
          {"instruction_set", "AVX2"},
          {"cores", cores},
          {"cores_of_host", 4},
          {"load", 0.5},
          {"memory_free_bytes", 8 * kGiB},
          {"shared_memory_bytes", kGiB},
          {"gpu", false},
          {"cuda", no_cuda()},
          {"disk_folder", "/data"},
          {"disk_free_bytes", 100 * kGiB}};
}

json two_workers() {
  return json::array({worker(0, "a", {0, 1, 2, 3}), worker(1, "a", {0, 1, 2, 3})});
}

// Findings about the workers; whether mpirun is there depends on the machine that runs the test.
std::vector<Finding> problems(const json& workers) {
  std::vector<Finding> found = find_problems(workers);
  std::erase_if(found, [](const Finding& f) { return f.what.starts_with("mpirun"); });
  return found;
}

// The one finding, of which `what` is a part.
void expect_one(const json& workers, const std::string& what, const std::string& mend, bool fatal) {
  const std::vector<Finding> found = problems(workers);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_THAT(found[0].what, HasSubstr(what));
  EXPECT_THAT(found[0].mend, HasSubstr(mend));
  EXPECT_EQ(found[0].fatal, fatal);
}

TEST(Findings, NothingIsWrongWithSoundWorkers) {
  EXPECT_TRUE(problems(two_workers()).empty());
  EXPECT_TRUE(problems(json::array({worker(0, "a", {0, 1, 2, 3})})).empty());
}

TEST(Findings, WorkersBoundToAFewOfTheCores) {
  json workers = two_workers();
  workers[0]["cores"] = {0};
  workers[1]["cores"] = {1};
  expect_one(workers, "a: the workers are bound to 2 of 4 cores", "--bind-to none", false);
}

TEST(Findings, MoreWorkersThanCores) {
  json workers = two_workers();
  for (json& w : workers) {
    w["cores"] = {0};
    w["cores_of_host"] = 1;
  }
  expect_one(workers, "2 workers share 1 cores", "mpirun -np 1", false);
}

TEST(Findings, OtherProgramsThatRun) {
  json workers = two_workers();
  workers[0]["load"] = 4.6;
  expect_one(workers, "other programs are running (load 4.6 on 4 cores)", "top", false);
  workers[0]["load"] = 4.4;  // no more than the workers' own
  EXPECT_TRUE(problems(workers).empty());
}

TEST(Findings, LittleMemory) {
  json workers = two_workers();
  workers[0]["memory_free_bytes"] = kGiB - 1;
  expect_one(workers, "of memory are available", "limit", false);
}

TEST(Findings, TooLittleSharedMemoryForSeveralWorkersAlone) {
  json workers = two_workers();
  for (json& w : workers) w["shared_memory_bytes"] = (int64_t{16} << 20) - 1;
  expect_one(workers, "/dev/shm has", "--shm-size", true);
  EXPECT_TRUE(problems(json::array({workers[0]})).empty());
}

TEST(Findings, AGpuThatThisBuildCannotUse) {
  json workers = two_workers();
  workers[0]["gpu"] = true;
  expect_one(workers, "NVIDIA GPU", "-DLOCKSTEP_CUDA=ON", false);
}

// Two workers of one host with CUDA.
json two_workers_with(const json& report) {
  json workers = two_workers();
  for (json& w : workers) {
    w["cuda"] = report;
    w["gpu"] = !report["gpus"].empty();
  }
  return workers;
}

TEST(Findings, NothingIsWrongWithAGpuAWorker) {
  EXPECT_TRUE(problems(two_workers_with(cuda(2))).empty());
}

TEST(Findings, CudaWithoutADriver) {
  json report = cuda(0);
  report["driver"] = 0;
  json workers = two_workers_with(report);
  expect_one(workers, "a: no NVIDIA driver is loaded: it computes on its CPUs", "driver", false);
  workers[0]["gpu"] = true;
  expect_one(workers, "loaded, though there is a GPU", "--gpus all", false);
}

TEST(Findings, ADriverThatIsOlderThanTheRuntime) {
  json report = cuda(0);
  report["driver"] = 12080;
  expect_one(two_workers_with(report), "CUDA 12.8, which is older than the runtime's 13.0",
             "the CUDA toolkit 12.8", true);
  report = cuda(2);
  report["runtime"] = 13010;
  expect_one(two_workers_with(report), "only code compiled for its GPUs", "driver", false);
  report["driver"] = 13020;  // newer: nothing to mend
  EXPECT_TRUE(problems(two_workers_with(report)).empty());
}

TEST(Findings, ADriverThatShowsNoGpu) {
  expect_one(two_workers_with(cuda(0)), "CUDA sees no GPU", "CUDA_VISIBLE_DEVICES", false);
}

TEST(Findings, MoreWorkersThanGpus) {
  expect_one(two_workers_with(cuda(1)), "a: 2 workers, but 1 GPU", "--share-gpu", true);
}

// As a batch system does that gives GPUs to tasks.
TEST(Findings, WorkersThatSeeEachAGpuOfTheirOwn) {
  json workers = two_workers_with(cuda(1));
  workers[1]["cuda"]["gpus"][0]["id"] = "GPU-1";
  EXPECT_TRUE(problems(workers).empty());
}

TEST(Findings, WithoutNccl) {
  json report = cuda(2);
  report["nccl"] = {{"built", "2.28.9"}, {"loaded", ""}, {"obstacle", "no NCCL: not found"}};
  expect_one(two_workers_with(report), "a: several workers cannot use GPUs: no NCCL: not found",
             "LD_LIBRARY_PATH", true);
  json alone = json::array({two_workers_with(report)[0]});
  expect_one(alone, "no NCCL: not found", "LD_LIBRARY_PATH", false);
}

TEST(Findings, WithoutCudnn) {
  json report = cuda(2);
  report["cudnn"] = {{"version", ""}, {"obstacle", "no cuDNN: libcudnn.so.9 is missing"}};
  expect_one(two_workers_with(report), "several times slower than cuDNN's: no cuDNN: libcudnn.so.9",
             "LD_LIBRARY_PATH", false);
  report["gpus"] = json::array();
  report["driver"] = 0;  // without a GPU that is all there is to mend
  expect_one(two_workers_with(report), "no NVIDIA driver", "", false);
}

TEST(Findings, AGpuOfAnOldArchitecture) {
  json report = cuda(2);
  report["gpus"][1]["architecture"] = 75;
  report["gpus"][1]["name"] = "T4";
  expect_one(two_workers_with(report), "GPU 1 (T4) is of architecture 7.5; 8.0 or newer", "cpu",
             true);
}

TEST(Findings, LibrariesOlderThanThoseBuiltWith) {
  json report = cuda(2);
  report["nccl"]["loaded"] = "2.9.28";
  expect_one(two_workers_with(report), "NCCL 2.9.28 is loaded, older than 2.28.9",
             "LD_LIBRARY_PATH", false);
  report["nccl"]["loaded"] = "2.29.0";
  EXPECT_TRUE(problems(two_workers_with(report)).empty());
  report["cublaslt"]["loaded"] = "";
  expect_one(two_workers_with(report), "cuBLASLt of an unknown version", "", false);
}

TEST(Findings, HostsWithDifferentGpus) {
  json workers = two_workers_with(cuda(2));
  workers[1]["host"] = "b";
  workers[1]["traits"][1][1] = "A100";
  expect_one(workers, "GPU is H100 for worker 0 on a, but A100 for worker 1 on b", "one kind",
             true);
}

TEST(Findings, HostsThatDiffer) {
  json workers = two_workers();
  workers[1]["host"] = "b";
  EXPECT_TRUE(problems(workers).empty());
  workers[1]["mpi"] = "MPI 5";
  expect_one(workers, R"("MPI 4" on a, "MPI 5" on b)", "same", true);
  workers[1]["mpi"] = "MPI 4";
  workers[1]["traits"][0][1] = "2";
  expect_one(workers, "lockstep is 1 for worker 0 on a, but 2 for worker 1 on b", "same", true);
  workers[1]["traits"] = to_json({{"products", "oneDNN 2"}});  // which worker 0 has not named
  EXPECT_TRUE(problems(workers).empty());
  workers[1]["traits"] = workers[0]["traits"];
  workers[1]["instruction_set"] = "AVX-512";
  expect_one(workers, "different instructions", "one kind", false);
}

}  // namespace
}  // namespace lockstep::launch
