#include <gmock/gmock.h>

#include "kernels/cudnn_attention.h"

namespace lockstep::kernels::cuda {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

const AttentionShape kShape{DType::bf16, 8, 1024, {12, 12, 64}};

TEST(CudnnLibrary, IsLoaded) {
  std::string name;
  EXPECT_EQ(cudnn_obstacle(&name), "");
  EXPECT_THAT(name, StartsWith("cuDNN 9."));
}

TEST(CudnnLibrary, MayBeTooOld) {
  EXPECT_EQ(cudnn_obstacle(), "cuDNN 9.2.0 is too old: cuDNN 9.16.0 or newer is needed");
  EXPECT_EQ(cudnn_attention_obstacle(kShape), cudnn_obstacle());
}

TEST(CudnnLibrary, MayBeSomethingElse) {
  EXPECT_EQ(cudnn_obstacle(), "libcudnn.so.9 is not cuDNN");
  EXPECT_EQ(cudnn_attention_obstacle(kShape), cudnn_obstacle());
}

}  // namespace
}  // namespace lockstep::kernels::cuda
