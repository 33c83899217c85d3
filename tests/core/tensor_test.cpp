#include "core/tensor.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace lockstep {
namespace {

TEST(Shape, CountsAndPrints) {
  EXPECT_EQ(Shape().size(), 1);
  EXPECT_EQ(Shape().to_string(), "()");
  EXPECT_EQ((Shape{2, 3, 4}).size(), 24);
  EXPECT_EQ((Shape{2, 3, 4}).to_string(), "(2, 3, 4)");
  EXPECT_EQ((Shape{5, 0}).size(), 0);
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2}), (Shape{2, 1}));
  EXPECT_THROW((Shape{-1}), std::logic_error);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1}), std::logic_error);
}

TEST(Tensor, IsAMatrixOfItsLastDimension) {
  float data[24];
  const Tensor t(data, DType::fp32, {2, 3, 4});
  EXPECT_EQ(t.rows(), 6);
  EXPECT_EQ(t.cols(), 4);
  EXPECT_EQ(t.dim(1), 3);
  EXPECT_EQ(t.size_bytes(), 96);
  EXPECT_EQ(Tensor(data, DType::bf16, {2, 3, 4}).size_bytes(), 48);
  EXPECT_EQ(Tensor(data, DType::fp32, {}).rows(), 1);
  EXPECT_EQ(Tensor(data, DType::fp32, {3, 0}).rows(), 0);
  EXPECT_TRUE(Tensor().empty());
  EXPECT_FALSE(t.empty());
}

TEST(Tensor, SlicesAndReshapesWithinItsBounds) {
  bf16 data[24];
  const Tensor t(data, DType::bf16, {4, 6});
  const Tensor middle = t.slice(1, 3);
  EXPECT_EQ(middle.as<bf16>(), data + 6);
  EXPECT_EQ(middle.shape(), (Shape{2, 6}));
  EXPECT_EQ(t.slice(4, 4).size(), 0);
  EXPECT_THROW(t.slice(-1, 2), std::logic_error);
  EXPECT_THROW(t.slice(3, 2), std::logic_error);
  EXPECT_THROW(t.slice(0, 5), std::logic_error);
  EXPECT_THROW(Tensor(data, DType::bf16, {}).slice(0, 0), std::logic_error);

  EXPECT_EQ(t.reshape({2, 2, 6}).shape(), (Shape{2, 2, 6}));
  EXPECT_EQ(t.reshape({24}).as<bf16>(), data);
  EXPECT_THROW(t.reshape({23}), std::logic_error);
}

TEST(Tensor, RefusesAnotherType) {
  float data[1];
  const Tensor t(data, DType::fp32, {1});
  EXPECT_EQ(t.as<float>(), data);
  EXPECT_THROW(t.as<bf16>(), std::logic_error);
  EXPECT_THROW(t.as<int32_t>(), std::logic_error);
}

TEST(Buffer, IsZeroedAndOnAPage) {
  const Buffer buffer(DType::fp32, {3, 1000});
  const Tensor t = buffer.tensor();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data()) % 4096, 0u);
  EXPECT_EQ(buffer.size_bytes(), 12000);
  for (int64_t i = 0; i < t.size(); i++) ASSERT_EQ(t.as<float>()[i], 0.0f);
}

TEST(Buffer, ViewsStayInside) {
  const Buffer buffer(100);
  EXPECT_EQ(buffer.tensor(DType::bf16, {50}).size(), 50);
  const Tensor tail = buffer.tensor(DType::fp32, {5}, 80);
  EXPECT_EQ(static_cast<char*>(tail.data()),
            static_cast<char*>(buffer.tensor(DType::fp32, {1}).data()) + 80);
  EXPECT_EQ(buffer.tensor(DType::fp32, {0}, 100).size(), 0);
  EXPECT_THROW(buffer.tensor(DType::bf16, {51}), std::logic_error);
  EXPECT_THROW(buffer.tensor(DType::fp32, {5}, 84), std::logic_error);
  EXPECT_THROW(buffer.tensor(DType::fp32, {1}, -4), std::logic_error);
}

TEST(Buffer, MovesItsMemory) {
  Buffer first(DType::fp32, {4});
  float* data = first.tensor().as<float>();
  data[3] = 7;
  Buffer second(std::move(first));
  EXPECT_EQ(second.tensor().as<float>(), data);
  Buffer third;
  EXPECT_EQ(third.size_bytes(), 0);
  EXPECT_TRUE(third.tensor().empty());
  third = std::move(second);
  EXPECT_EQ(third.tensor().as<float>()[3], 7);
  EXPECT_EQ(third.size_bytes(), 16);
}

TEST(Buffer, SaysWhenMemoryIsRefused) {
  try {
    Buffer buffer(int64_t{1} << 60);
    FAIL() << "an exbibyte was granted";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("out of memory"), std::string::npos) << error.what();
  }
  EXPECT_THROW(Buffer(-1), std::logic_error);
}

}  // namespace
}  // namespace lockstep
