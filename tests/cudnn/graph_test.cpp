#include <gmock/gmock.h>

#include <fstream>
#include <iterator>

#include "kernels/cudnn_attention.h"

// The graphs of kernels/cudnn_attention.cpp, built and given to cuDNN's heuristics for an H100 that
// is not here. To make a plan of an engine configuration would need one.
namespace lockstep::kernels::cuda {
namespace {

std::string h100() {
  std::ifstream file(LOCKSTEP_H100);
  return {std::istreambuf_iterator<char>(file), {}};
}

int64_t configurations(const AttentionShape& shape, AttentionPass pass) {
  return cudnn_attention_configurations(shape, pass, h100(), 90);
}

std::string text(const AttentionShape& s) {
  return fmt::format("{} B{} T{} H{} K{} D{}", name(s.dtype), s.sequences, s.tokens,
                     s.heads.num_heads, s.heads.num_kv_heads, s.heads.head_dim);
}

class CudnnGraph : public testing::Test {
 protected:
  static void expect_engines(const AttentionShape& shape) {
    SCOPED_TRACE(text(shape));
    EXPECT_GE(configurations(shape, AttentionPass::forward), 1);
    EXPECT_GE(configurations(shape, AttentionPass::backward), 1);
  }
};

TEST_F(CudnnGraph, HasEnginesForGpt2) {
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    expect_engines({dtype, 8, 1024, {12, 12, 64}});
    expect_engines({dtype, 1, 1024, {25, 25, 64}});
  }
}

TEST_F(CudnnGraph, HasEnginesForLlama) {
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    expect_engines({dtype, 2, 4096, {32, 8, 128}});
    expect_engines({dtype, 1, 2048, {32, 1, 128}});
  }
}

// No multiple of the size of a tile.
TEST_F(CudnnGraph, HasEnginesForOddSizes) {
  expect_engines({DType::bf16, 3, 2, {4, 2, 8}});
  expect_engines({DType::bf16, 1, 129, {3, 1, 72}});
  expect_engines({DType::fp16, 5, 1000, {2, 2, 96}});
}

TEST_F(CudnnGraph, NamesShapesThatAreNotForIt) {
  const auto obstacle = [](DType dtype, int64_t tokens, const Heads& heads) {
    return cudnn_attention_obstacle({dtype, 1, tokens, heads});
  };
  EXPECT_EQ(obstacle(DType::fp32, 64, {1, 1, 64}),
            "cuDNN's attention is for bf16 and fp16, not fp32");
  EXPECT_EQ(obstacle(DType::bf16, 64, {1, 1, 60}),
            "cuDNN's attention is for heads of a multiple of 8 up to 128, not 60");
  EXPECT_EQ(obstacle(DType::bf16, 64, {1, 1, 136}),
            "cuDNN's attention is for heads of a multiple of 8 up to 128, not 136");
  EXPECT_EQ(obstacle(DType::bf16, 1, {1, 1, 64}), "cuDNN's attention is for 2 tokens or more");
  EXPECT_EQ(obstacle(DType::bf16, 65536, {1, 1, 64}),
            "cuDNN's deterministic backward would need 8192 MiB of scratch for 65536 tokens");
}

// Without a GPU there is no plan, which the caller hears and our own kernels make good.
TEST_F(CudnnGraph, SaysWhatIsInTheWayWithoutAGpu) {
  if (cuda_device_count() > 0) GTEST_SKIP() << "there is a GPU";
  EXPECT_NE(cudnn_attention_obstacle({DType::bf16, 8, 1024, {12, 12, 64}}), "");
}

TEST_F(CudnnGraph, RefusesADescriptionThatIsNone) {
  EXPECT_THROW(cudnn_attention_configurations({DType::bf16, 8, 1024, {12, 12, 64}},
                                              AttentionPass::forward, "{}", 90),
               DeviceError);
}

}  // namespace
}  // namespace lockstep::kernels::cuda
