#include "launch/findings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace lockstep::launch {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
constexpr int64_t kGiB = int64_t{1} << 30;

// A worker with nothing wrong.
json worker(int rank, const std::string& host, std::vector<int> cores) {
  return {{"rank", rank},
          {"host", host},
          {"version", "1"},
          {"mpi", "MPI 4"},
          {"product_library", "oneDNN 2"},
          {"instruction_set", "AVX2"},
          {"cores", cores},
          {"cores_of_host", 4},
          {"load", 0.5},
          {"memory_free_bytes", 8 * kGiB},
          {"shared_memory_bytes", kGiB},
          {"gpu", false},
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
  expect_one(workers, "NVIDIA GPU", "", false);
}

TEST(Findings, HostsThatDiffer) {
  json workers = two_workers();
  workers[1]["host"] = "b";
  EXPECT_TRUE(problems(workers).empty());
  workers[1]["version"] = "2";
  expect_one(workers, R"("1" on a, "2" on b)", "same", true);
  workers[1]["version"] = "1";
  workers[1]["instruction_set"] = "AVX-512";
  expect_one(workers, "different instructions", "one kind", false);
}

TEST(Findings, TheDiskOfTheFirstWorker) {
  json workers = two_workers();
  workers[0]["disk_free_bytes"] = 2 * kGiB - 1;
  expect_one(workers, "are free in /data", "--run", false);
  workers[0]["disk_error"] = "/data: cannot be written: Read-only file system";
  expect_one(workers, "Read-only", "folder", true);
}

}  // namespace
}  // namespace lockstep::launch
