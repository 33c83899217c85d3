#include "kernels/residual_sum.h"

#include <gtest/gtest.h>

namespace lockstep::kernels {
namespace {

// What is added is tested with the norms that add it.
TEST(ResidualSum, FitsWithBothPartsOfTheInputsSizeOrWithNone) {
  const Buffer x(DType::fp32, {2, 3}), same(DType::fp32, {2, 3}), other(DType::fp32, {2, 4});
  const Tensor none;
  const auto fits = [&](const Tensor& added, const Tensor& sum) {
    return ResidualSum{added, sum}.fits(x.tensor());
  };
  EXPECT_TRUE(fits(none, none));
  EXPECT_TRUE(fits(same.tensor(), x.tensor()));
  EXPECT_FALSE(fits(same.tensor(), none));
  EXPECT_FALSE(fits(none, same.tensor()));
  EXPECT_FALSE(fits(other.tensor(), same.tensor()));
  EXPECT_FALSE(fits(same.tensor(), other.tensor()));
}

}  // namespace
}  // namespace lockstep::kernels
