#include "comm/work_queue.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <numeric>
#include <thread>

#include "core/check.h"
#include "tests/comm/world.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

struct WorkQueueTest : testing::Test {
  Communicator& comm = world();
  const int rank = comm.rank(), size = comm.size();

  // 0 to 99, in an order of their own.
  static std::vector<size_t> items() {
    std::vector<size_t> all(100);
    for (size_t i = 0; i < all.size(); i++) all[i] = i * 37 % all.size();
    return all;
  }
  // Some are longer than what MPI sends without being asked for it.
  static std::string result_of(size_t item) {
    return std::string(item % 10 == 0 ? 1'000'000 : item, static_cast<char>('a' + item % 26));
  }
  static bool never() { return false; }
};

TEST_F(WorkQueueTest, EachItemGoesToOneWorkerInItsTurnAndItsResultComesBack) {
  std::map<size_t, std::string> results;
  WorkQueue queue(
      session, items(),
      [&](size_t item, const std::string& result) {
        EXPECT_TRUE(results.emplace(item, result).second) << item;
      },
      never);
  const std::vector<size_t> order = items();
  auto place = order.begin();
  for (std::optional<size_t> item; (item = queue.take());) {
    place = std::find(place, order.end(), *item);
    EXPECT_NE(place, order.end()) << *item << " is out of turn";
    EXPECT_FALSE(queue.stopped());
    queue.put(*item, result_of(*item));
  }
  EXPECT_FALSE(queue.take());
  queue.finish();
  EXPECT_EQ(results.size(), rank == 0 ? 100u : 0u);
  for (const auto& [item, result] : results) EXPECT_EQ(result, result_of(item)) << item;
}

// Rank 0 does not call the queue until all that the others do is there.
TEST_F(WorkQueueTest, RankZeroNeedNotCall) {
  if (size == 1) GTEST_SKIP() << "there is nobody else";
  std::atomic<size_t> results{0};
  WorkQueue queue(
      session, items(), [&](size_t, const std::string&) { results++; }, never);
  std::optional<size_t> first;
  if (rank == 0) first = queue.take();
  comm.barrier();
  while (rank == 0 && results < 99) std::this_thread::yield();
  size_t taken = first ? 1 : 0;
  for (; const auto item = queue.take(); taken++) queue.put(*item, "");
  if (first) queue.put(*first, "");
  queue.finish();
  if (rank == 0) {
    EXPECT_EQ(results, 100u);
    EXPECT_EQ(taken, 1u);
  }
}

// Asked on one worker, it ends all; what was taken before still counts.
TEST_F(WorkQueueTest, AStopEndsAll) {
  for (int asked = 0; asked < size; asked++) {
    size_t results = 0;
    bool stop = false;
    WorkQueue queue(
        session, items(), [&](size_t, const std::string&) { results++; }, [&] { return stop; });
    const auto mine = queue.take();
    ASSERT_TRUE(mine);
    comm.barrier();
    stop = rank == asked;
    while (!queue.stopped()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_FALSE(queue.take());
    queue.put(*mine, "");
    queue.finish();
    EXPECT_EQ(results, rank == 0 ? static_cast<size_t>(size) : 0u);
  }
}

TEST_F(WorkQueueTest, NoItems) {
  WorkQueue queue(
      session, {}, [](size_t, const std::string&) { FAIL(); }, never);
  EXPECT_FALSE(queue.take());
  queue.finish();
}

// However long a worker computes, its queue gives the signs of life.
TEST_F(WorkQueueTest, AWorkerMayComputeForLongerThanTheDeadline) {
  size_t results = 0;
  WorkQueue queue(
      session, items(), [&](size_t, const std::string&) { results++; }, never, 0.5);
  const auto first = queue.take();
  ASSERT_TRUE(first);
  comm.barrier();
  if (rank == size - 1) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  queue.put(*first, "");
  while (const auto item = queue.take()) queue.put(*item, "");
  queue.finish();
  EXPECT_EQ(results, rank == 0 ? 100u : 0u);
}

// What cannot be kept is thrown at rank 0, whoever brought it. The queue can go then, with what is
// under way: the second result is longer than what MPI sends without being asked for it.
TEST_F(WorkQueueTest, AFailureToKeepAResultIsThrown) {
  for (const size_t length : {1, 1'000'000}) {
    const int worker = size - 1;
    std::string error;
    {
      WorkQueue queue(
          session, {7, 8}, [](size_t, const std::string&) { throw DataError("the disk is full"); },
          never, 0.5);
      try {
        if (rank == worker) queue.put(*queue.take(), std::string(length, 'x'));
        if (rank == 0) queue.finish();
      } catch (const Error& thrown) {
        error = thrown.what();
      }
    }
    if (rank == 0) {
      EXPECT_EQ(error, "the disk is full");
    } else if (rank == worker) {
      EXPECT_THAT(error, HasSubstr("nothing had come from worker 0"));
    }
    comm.barrier();
  }
}

// Its queue is gone: nothing gives signs of life any more.
TEST_F(WorkQueueTest, AWorkerThatIsLostIsTold) {
  if (size == 1) GTEST_SKIP() << "there is nobody to lose";
  const int lost = size - 1;
  std::string error;
  {
    WorkQueue queue(
        session, {1, 2, 3}, [](size_t, const std::string&) {}, never, 0.5);
    try {
      if (rank != lost) queue.finish();
    } catch (const DeviceError& thrown) {
      error = thrown.what();
    }
  }
  if (rank == 0) {
    EXPECT_THAT(error, HasSubstr(fmt::format("s nothing had come from worker {}; look", lost)));
  } else if (rank != lost) {  // rank 0 has given up
    EXPECT_THAT(error, HasSubstr("s nothing had come from worker 0; look"));
  }
  comm.barrier();
}

}  // namespace
}  // namespace lockstep
