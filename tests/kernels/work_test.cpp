#include "kernels/work.h"

#include <gtest/gtest.h>

namespace lockstep::kernels {
namespace {

TEST(Work, BytesAreOfEachTensorOnceAndOfNoneThatIsEmpty) {
  const Buffer wide(DType::fp32, {2, 3}), narrow(DType::bf16, {5});
  EXPECT_EQ(bytes_of(), 0);
  EXPECT_EQ(bytes_of(wide.tensor(), Tensor(), narrow.tensor()), 24 + 10);
  EXPECT_EQ(bytes_of(wide.tensor(), wide.tensor()), 48);  // read and written
}

// A multiplication and an addition a channel, for each query and each key up to its own.
TEST(Work, AttentionMultipliesEachQueryWithTheKeysUpToItsOwn) {
  constexpr int64_t kSequences = 2, kHeads = 3, kHeadDim = 4;
  for (const int64_t first : {0, 7}) {
    for (const int64_t tokens : {1, 5}) {
      double flops = 0;
      for (int64_t query = first; query < first + tokens; query++) {
        for (int64_t key = 0; key <= query; key++) flops += 2 * kHeadDim;
      }
      EXPECT_EQ(attention_product_flops(kSequences, kHeads, kHeadDim, tokens, first),
                kSequences * kHeads * flops)
          << tokens << " tokens from " << first;
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels
