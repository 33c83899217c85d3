#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/cuda/workspace.h"
#include "tests/kernels/on_device.h"
#include "tests/trainer/rehearsed.h"
#include "trainer/rehearsal.h"

namespace lockstep {
namespace {

using PlannedMemory = kernels::tests::CudaTest;

int64_t free_bytes() {
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return static_cast<int64_t>(free);
}

// How much a device takes for one byte.
int64_t granule() {
  const int64_t before = free_bytes();
  const Buffer byte(1, Device::cuda);
  return before - free_bytes();
}

TEST_F(PlannedMemory, IsWhatTheDeviceGivesAway) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    for (const DType precision : {DType::fp32, DType::bf16}) {
      TrainConfig config = tests::small_training(family, precision);
      config.device = Device::cuda;
      config.batch_size = 4;  // two micro-batches
      const Training::Memory plan = planned_memory(config, 0, 1);
      const int64_t before = free_bytes();
      tests::RealTraining real(config);
      EXPECT_FALSE(real.training.step().skipped);
      real.training.model().stream().synchronize();  // before anything is freed
      const int64_t taken = before - free_bytes();
      const Stream& stream = real.training.model().stream();
      const int64_t others =
          stream.workspace_bytes(Workspace::kernel) + stream.workspace_bytes(Workspace::classifier);
      EXPECT_EQ(others + kernels::cuda::kProductWorkspaceBytes, plan.model.workspace);
      const int64_t workspace = others + stream.workspace_bytes(Workspace::product);
      EXPECT_LE(workspace, plan.model.workspace);
      // At most 18 buffers, each in whole granules.
      EXPECT_NEAR(static_cast<double>(taken),
                  static_cast<double>(plan.total() - plan.model.workspace + workspace),
                  static_cast<double>(18 * granule()));
    }
  }
}

}  // namespace
}  // namespace lockstep
