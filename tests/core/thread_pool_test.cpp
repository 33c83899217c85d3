#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace lockstep {
namespace {

class ThreadPool : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_num_threads(GetParam()); }
  void TearDown() override { set_num_threads(1); }
};
INSTANTIATE_TEST_SUITE_P(Threads, ThreadPool, testing::Values(1, 2, 3, 8));

TEST_P(ThreadPool, EveryBlockRunsOnceAndIsTheSameForAnyThreads) {
  EXPECT_EQ(num_threads(), GetParam());
  for (int64_t n : {0, 1, 2, 15, 16, 17, 1000}) {
    for (int64_t grain : {1, 16, 2000}) {
      std::mutex mutex;
      std::multiset<std::pair<int64_t, int64_t>> blocks, want;
      for (int64_t begin = 0; begin < n; begin += grain) {
        want.emplace(begin, std::min(n, begin + grain));
      }
      parallel_for(n, grain, [&](int64_t begin, int64_t end) {
        const std::lock_guard lock(mutex);
        blocks.emplace(begin, end);
      });
      ASSERT_EQ(blocks, want) << n << " by " << grain;
    }
  }
}

TEST_P(ThreadPool, ManyShortLoopsLoseNothing) {
  std::atomic<int64_t> sum = 0;
  for (int k = 0; k < 2000; k++) {
    parallel_for(8, 1, [&](int64_t begin, int64_t) { sum += begin; });
  }
  EXPECT_EQ(sum, 2000 * 28);
}

TEST_P(ThreadPool, ThreadIndexIsTheThreadsOwn) {
  std::mutex mutex;
  std::set<std::pair<int, std::thread::id>> seen;
  parallel_for(1000, 1, [&](int64_t, int64_t) {
    EXPECT_GE(thread_index(), 0);
    EXPECT_LT(thread_index(), num_threads());
    const std::lock_guard lock(mutex);
    seen.emplace(thread_index(), std::this_thread::get_id());
  });
  std::set<int> indices;
  std::set<std::thread::id> threads;
  for (const auto& [index, thread] : seen) indices.insert(index), threads.insert(thread);
  EXPECT_EQ(indices.size(), seen.size());
  EXPECT_EQ(threads.size(), seen.size());
  EXPECT_EQ(thread_index(), 0);
}

TEST_P(ThreadPool, AllThreadsTakePart) {
  std::atomic<int> inside = 0;
  // Each block waits until every thread has one: it ends only if they run at the same time.
  parallel_for(num_threads(), 1, [&](int64_t, int64_t) {
    inside++;
    while (inside < num_threads()) std::this_thread::yield();
  });
  EXPECT_EQ(inside, num_threads());
}

TEST_P(ThreadPool, TheFirstExceptionComesBackAndThePoolGoesOn) {
  for (int round = 0; round < 20; round++) {
    std::string message;
    try {
      parallel_for(100, 1, [&](int64_t begin, int64_t) {
        if (begin == 37) throw std::runtime_error("block 37");
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    EXPECT_EQ(message, "block 37");
    std::atomic<int> count = 0;
    parallel_for(100, 1, [&](int64_t, int64_t) { count++; });
    EXPECT_EQ(count, 100);
  }
  // When all throw, one is reported.
  EXPECT_THROW(parallel_for(100, 1, [](int64_t, int64_t) { throw std::bad_alloc(); }),
               std::bad_alloc);
}

TEST_P(ThreadPool, NestedLoopsRunOnTheirThread) {
  std::atomic<int> count = 0;
  parallel_for(20, 1, [&](int64_t, int64_t) {
    const auto outer = std::this_thread::get_id();
    const int index = thread_index();
    parallel_for(30, 4, [&](int64_t begin, int64_t end) {
      EXPECT_TRUE(std::this_thread::get_id() == outer || num_threads() == 1);
      EXPECT_EQ(thread_index(), index);
      count += static_cast<int>(end - begin);
    });
  });
  EXPECT_EQ(count, 600);
  // An exception passes through both.
  EXPECT_THROW(parallel_for(20, 1,
                            [](int64_t, int64_t) {
                              parallel_for(3, 1, [](int64_t begin, int64_t) {
                                if (begin == 2) throw std::out_of_range("inner");
                              });
                            }),
               std::out_of_range);
  // Afterwards loops are parallel again.
  std::atomic<int> inside = 0;
  parallel_for(num_threads(), 1, [&](int64_t, int64_t) {
    inside++;
    while (inside < num_threads()) std::this_thread::yield();
  });
}

TEST_P(ThreadPool, ThreadsFromOutsideTakeTurns) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> sum = 0;
  for (int caller = 0; caller < 4; caller++) {
    callers.emplace_back([&] {
      for (int k = 0; k < 100; k++) {
        std::vector<int64_t> own(50, 0);  // written by this caller's loop alone
        parallel_for(50, 3, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i++) own[i] += i;
        });
        for (int64_t value : own) sum += value;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 100 * 1225);
}

TEST(ThreadPoolSize, ChangesAndRefusesNone) {
  for (int count : {3, 1, 5, 2}) {
    set_num_threads(count);
    EXPECT_EQ(num_threads(), count);
    std::atomic<int> blocks = 0;
    parallel_for(64, 1, [&](int64_t, int64_t) { blocks++; });
    EXPECT_EQ(blocks, 64);
  }
  EXPECT_THROW(set_num_threads(0), std::logic_error);
  EXPECT_THROW(parallel_for(1, 0, [](int64_t, int64_t) {}), std::logic_error);
  set_num_threads(1);
}

}  // namespace
}  // namespace lockstep
