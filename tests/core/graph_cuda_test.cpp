#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "core/check.h"
#include "core/mirrored.h"
#include "tests/kernels/on_device.h"

namespace lockstep {
namespace {

using GraphCuda = kernels::tests::CudaTest;

// What is launched reads what stands in memory then, and goes through a second stream and back.
TEST_F(GraphCuda, LaunchesReadWhatIsThere) {
  Stream stream(Device::cuda), other(Device::cuda);
  Event forked(Device::cuda), joined(Device::cuda);
  Mirrored<int32_t> in(Device::cuda), middle(Device::cuda), out(Device::cuda);
  const auto view = [](Mirrored<int32_t>& x) {
    return Tensor(x.there(), DType::int32, {1}, Device::cuda);
  };
  EXPECT_FALSE(stream.capturing());
  Graph graph(stream, [&] {
    EXPECT_TRUE(stream.capturing());
    copy(view(middle), view(in), stream);
    forked.record(stream);
    other.wait(forked);
    copy(view(out), view(middle), other);
    joined.record(other);
    stream.wait(joined);
    out.download(stream);
  });
  EXPECT_FALSE(stream.capturing());
  stream.synchronize();
  EXPECT_EQ(out.host(), 0);  // nothing has run
  Graph moved(std::move(graph));
  for (const int value : {5, 6, 7}) {
    in.host() = value;
    in.upload(stream);
    moved.launch(stream);
    stream.synchronize();
    EXPECT_EQ(out.host(), value);
  }
}

TEST_F(GraphCuda, WhatCannotBeCapturedIsRefused) {
  Stream stream(Device::cuda), other(Device::cuda);
  Mirrored<int32_t> value(Device::cuda);
  Event forked(Device::cuda);
  EXPECT_THROW(Graph(stream, [&] { stream.synchronize(); }), DeviceError);
  EXPECT_THROW(Graph(stream, [&] { throw std::runtime_error("own"); }), std::runtime_error);
  EXPECT_THROW(Graph(stream,
                     [&] {
                       forked.record(stream);
                       other.wait(forked);
                       value.upload(other);  // and nobody waits for it
                     }),
               DeviceError);
  // None of them leaves the streams captured.
  EXPECT_FALSE(stream.capturing() || other.capturing());
  value.host() = 3;
  value.upload(stream);
  stream.synchronize();
  value.host() = 4;
  value.download(stream);
  stream.synchronize();
  EXPECT_EQ(value.host(), 3);
}

}  // namespace
}  // namespace lockstep
