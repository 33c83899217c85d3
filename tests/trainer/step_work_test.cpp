#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/trainer/rehearsed.h"
#include "trainer/profile_report.h"

// What a step does, counted: how often each kernel is called, and the bytes and FLOPs that the
// calls declare (kernels/work.h). A kernel more, or a pass over memory more, shows here, on any
// machine and whatever else it does. tests/golden/trainer/step_work.json has the counts.
namespace lockstep {
namespace {

namespace fs = std::filesystem;

// calls, bytes, FLOPs by kernel, in a step that is not the first.
nlohmann::json work_of_a_step(const TrainConfig& config) {
  tests::RealTraining real(config);
  real.training.step();
  Profile profile(real.training.model().stream());
  real.training.step();
  nlohmann::json work;
  for (const auto& row : profile_totals(profile.finish()).rows) {
    // Only where the machine has no fast product of bf16.
    if (row.name == "widen") continue;
    work[row.name] = {row.calls, row.bytes, row.flops};
  }
  return work;
}

nlohmann::json work_of_all() {
  nlohmann::json all;
  TrainConfig gpt2 = tests::small_training(Family::gpt2, DType::fp32);
  gpt2.batch_size = 4;  // two micro-batches
  all["gpt2, fp32"] = work_of_a_step(gpt2);
  TrainConfig llama = tests::small_training(Family::llama, DType::bf16);
  llama.batch_size = 4;
  llama.virtual_workers = 2;
  llama.recompute = true;
  llama.model.dropout = 0.1f;
  all["llama, bf16, dropout, recompute, two virtual workers"] = work_of_a_step(llama);
  return all;
}

TEST(StepWork, IsAsRecorded) {
  const nlohmann::json now = work_of_all();
  const auto recorded = nlohmann::json::parse(
      std::ifstream(LOCKSTEP_GOLDEN "/trainer/step_work.json"), nullptr, false);
  ASSERT_TRUE(recorded.is_object()) << LOCKSTEP_GOLDEN "/trainer/step_work.json is damaged";
  if (now == recorded) return;
  const fs::path found = fs::absolute("step_work.json");
  std::ofstream(found) << now.dump(1) << "\n";
  for (const auto& [model, kernels] : now.items()) {
    const auto then = recorded.value(model, nlohmann::json::object());
    for (const auto& [kernel, work] : kernels.items()) {
      EXPECT_EQ(work, then.value(kernel, nlohmann::json())) << model << ": " << kernel;
    }
    for (const auto& [kernel, work] : then.items()) {
      EXPECT_TRUE(kernels.contains(kernel)) << model << ": " << kernel << " is gone";
    }
  }
  ADD_FAILURE() << "A step does other work (calls, bytes, FLOPs) than was recorded. If that is "
                   "meant:\n  cp "
                << found.string() << " " LOCKSTEP_GOLDEN "/trainer/step_work.json";
}

}  // namespace
}  // namespace lockstep
