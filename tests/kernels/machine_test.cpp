#include "kernels/machine.h"

#include <gmock/gmock.h>

namespace lockstep::kernels::tests {
namespace {

// How fast is a benchmark's business; here, that it is a rate and not the time, or operations of
// another product: any machine makes a product of 2 GFLOP in between 0.1 ms and a minute.
TEST(Machine, RatesAreFlopsPerSecond) {
  for (const DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    const double rate = measured_product_rate(dtype);
    EXPECT_GT(rate, 2e9 / 60) << name(dtype);
    EXPECT_LT(rate, 2e9 / 1e-4) << name(dtype);
  }
}

TEST(Machine, NamesTheLibraryWithItsVersion) {
  EXPECT_THAT(product_library(), testing::MatchesRegex("oneDNN [0-9]+\\.[0-9]+\\.[0-9]+"));
}

#if LOCKSTEP_CUDA
TEST(Machine, TellsVersionsOfCublaslt) {
  const LibraryVersion version = cublaslt_version();
  EXPECT_THAT(version.built, testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
  EXPECT_THAT(version.loaded, testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
}
#endif

}  // namespace
}  // namespace lockstep::kernels::tests
