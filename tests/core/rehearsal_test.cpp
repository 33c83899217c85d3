#include "core/rehearsal.h"

#include <gtest/gtest.h>

#include "core/tensor.h"

namespace lockstep {
namespace {

TEST(Rehearsal, BuffersHaveAddressesButNoMemory) {
  const Rehearsal rehearsal;
  // More than any machine has.
  const Buffer first(DType::fp32, {int64_t{1} << 42}, Device::cuda);
  const Buffer second(DType::fp32, {int64_t{1} << 42}, Device::cuda);
  EXPECT_EQ(first.size_bytes(), int64_t{1} << 44);
  const auto distance = reinterpret_cast<intptr_t>(first.tensor().data()) -
                        reinterpret_cast<intptr_t>(second.tensor().data());
  EXPECT_GE(std::abs(distance), int64_t{1} << 44);
  EXPECT_DEATH(first.tensor().as<float>()[7] = 1, "");
}

TEST(Rehearsal, CopiesAreNotedAndNotDone) {
  Rehearsal rehearsal;
  Stream stream(Device::cuda);
  const Buffer host(DType::fp32, {6}), device(DType::fp32, {6}, Device::cuda);
  copy(device.tensor(), host.tensor(), stream);
  copy(device.tensor().slice(0, 2), device.tensor().slice(4, 6), stream);
  const auto& entries = rehearsal.log().entries();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].work.name, "copy");
  EXPECT_EQ(entries[0].work.bytes, 24);
  EXPECT_EQ(entries[1].work.bytes, 2 * 8);  // both sides are the device's memory
}

TEST(Rehearsal, AWaitNamesTheLastEntryBeforeTheMark) {
  Rehearsal rehearsal;
  Stream a(Device::cuda), b(Device::cuda);
  Event marked(Device::cuda), empty(Device::cuda);
  empty.record(b);
  a.note({"first"});
  a.note({"second"});
  marked.record(a);
  a.note({"third"});
  b.wait(empty);  // of nothing: no wait
  b.wait(marked);
  const auto& entries = rehearsal.log().entries();
  ASSERT_EQ(entries.size(), 4u);
  EXPECT_EQ(entries[3].waits_for, 1);
  EXPECT_NE(entries[3].stream, entries[0].stream);
}

TEST(Rehearsal, WorkspaceGrowsAndIsCounted) {
  const Rehearsal rehearsal;
  Stream stream(Device::cuda);
  EXPECT_NE(stream.workspace(1000), nullptr);
  stream.workspace(500);
  stream.workspace(3000, Workspace::product);
  EXPECT_EQ(stream.workspace_bytes(Workspace::kernel), 1000);
  EXPECT_EQ(stream.workspace_bytes(Workspace::product), 3000);
  EXPECT_EQ(stream.workspace_bytes(Workspace::classifier), 0);
}

TEST(Rehearsal, EndsWithItsScope) {
  { const Rehearsal rehearsal; }
  EXPECT_EQ(Rehearsal::current(), nullptr);
  Stream stream;
  EXPECT_FALSE(stream.note({"work", 1}));
  const Buffer buffer(DType::fp32, {4});
  buffer.tensor().as<float>()[3] = 1;
}

}  // namespace
}  // namespace lockstep
