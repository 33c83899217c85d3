#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <thread>

#include "comm/agreement.h"
#include "comm/mpi_communicator.h"
#include "tests/comm/world.h"

namespace lockstep {
namespace {

// Sums below are of small integers, which fp32 holds exactly: equality, whatever the order.
struct CommunicatorTest : testing::Test {
  Communicator& comm = world();
  int rank = comm.rank(), size = comm.size();
  Stream stream;

  // Cuts everything into calls of at most 5 elements, as the real one does beyond 2^28.
  MpiCommunicator with_small_calls{MPI_COMM_WORLD, {.deadline_s = 60, .largest_count = 5}};
  std::vector<Communicator*> both{&comm, &with_small_calls};
};

template <class T>
Tensor view(std::vector<T>& values) {
  return Tensor(values.data(), kDTypeOf<T>, {static_cast<int64_t>(values.size())});
}

TEST_F(CommunicatorTest, AllReduceSums) {
  for (Communicator* c : both) {
    std::vector<float> values(13);
    for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i * 10) + rank;
    c->all_reduce(view(values), ReduceOp::sum, stream);
    for (size_t i = 0; i < values.size(); i++) {
      EXPECT_EQ(values[i], static_cast<float>(i * 10) * size + size * (size - 1) / 2);
    }
  }
}

TEST_F(CommunicatorTest, AllReduceTakesLargestAndSmallest) {
  for (Communicator* c : both) {
    std::vector<int32_t> values{rank, -rank, 7};
    c->all_reduce(view(values), ReduceOp::max, stream);
    EXPECT_THAT(values, testing::ElementsAre(size - 1, 0, 7));
    double pair[] = {1.5 + rank, -1.0 * rank};
    c->all_reduce(pair, 2, ReduceOp::min);
    EXPECT_THAT(pair, testing::ElementsAre(1.5, -(size - 1.0)));
  }
}

TEST_F(CommunicatorTest, SumsOfNarrowTypesAreRefused) {
  std::vector<bf16> values(2);
  EXPECT_THROW(comm.all_reduce(view(values), ReduceOp::sum, stream), std::logic_error);
}

TEST_F(CommunicatorTest, AllGather) {
  for (Communicator* c : both) {
    std::vector<fp16> values(static_cast<size_t>(7 * size));
    for (int i = 0; i < 7; i++) {
      values[static_cast<size_t>(7 * rank + i)].bits = static_cast<uint16_t>(100 * rank + i);
    }
    c->all_gather(view(values), stream);
    for (int r = 0; r < size; r++) {
      for (int i = 0; i < 7; i++) {
        EXPECT_EQ(values[static_cast<size_t>(7 * r + i)].bits, 100 * r + i);
      }
    }
  }
}

TEST_F(CommunicatorTest, ReduceScatter) {
  for (Communicator* c : both) {
    std::vector<float> data(static_cast<size_t>(7 * size)), out(7);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<float>(i) * (rank + 1);
    c->reduce_scatter(view(out), view(data), stream);
    for (int i = 0; i < 7; i++) {
      EXPECT_EQ(out[static_cast<size_t>(i)], (7 * rank + i) * size * (size + 1) / 2);
    }
  }
}

TEST_F(CommunicatorTest, AllToAll) {
  for (Communicator* c : both) {
    std::vector<int32_t> data(static_cast<size_t>(3 * size)), out(data.size(), -1);
    for (int i = 0; i < 3 * size; i++) data[static_cast<size_t>(i)] = 100 * rank + i;
    c->all_to_all(view(out), view(data), stream);
    for (int s = 0; s < size; s++) {
      for (int i = 0; i < 3; i++) {
        EXPECT_EQ(out[static_cast<size_t>(3 * s + i)], 100 * s + 3 * rank + i);
      }
    }
  }
}

TEST_F(CommunicatorTest, BroadcastFromEachRoot) {
  for (Communicator* c : both) {
    for (int root = 0; root < size; root++) {
      std::vector<float> values(11);
      if (rank == root) std::iota(values.begin(), values.end(), 5.0f);
      c->broadcast(view(values), root, stream);
      EXPECT_EQ(values[10], 15.0f);
      std::string text = rank == root ? "a text of some length" : "other";
      c->broadcast(text, root);
      EXPECT_EQ(text, "a text of some length");
    }
  }
}

TEST_F(CommunicatorTest, GatherKeepsLengthsAndOrder) {
  const auto texts = comm.gather(std::string(static_cast<size_t>(rank), 'x'));
  ASSERT_EQ(texts.size(), rank == 0 ? static_cast<size_t>(size) : 0u);
  for (size_t r = 0; r < texts.size(); r++) EXPECT_EQ(texts[r], std::string(r, 'x'));
}

TEST_F(CommunicatorTest, DuplicateServesAnotherThread) {
  const auto other = comm.duplicate();
  double here = 1, there = 10;
  std::thread thread([&] { other->all_reduce(&there, 1, ReduceOp::sum); });
  comm.all_reduce(&here, 1, ReduceOp::sum);
  thread.join();
  EXPECT_EQ(here, size);
  EXPECT_EQ(there, 10 * size);
}

// All that came say which did not, also those that came later and have not waited long.
TEST_F(CommunicatorTest, AWaitEndsAtTheDeadlineAndNamesOperationAndAbsentWorkers) {
  if (size == 1) GTEST_SKIP() << "there is nobody to wait for";
  // Lives on: the late worker still comes to the barrier.
  static MpiCommunicator impatient(MPI_COMM_WORLD, {});
  impatient.set_deadline(rank == 0 ? 0.5 : 60);
  impatient.set_purpose("of everything");
  const int late = size - 1;
  if (rank != late) {
    try {
      double value = 0;
      impatient.all_reduce(&value, 1, ReduceOp::sum);
      ADD_FAILURE() << "the last worker was not there";
    } catch (const DeviceError& error) {
      EXPECT_THAT(
          error.what(),
          testing::AllOf(testing::StartsWith("all-reduce of everything: after "),
                         testing::HasSubstr(fmt::format(" s worker {} had not come to it", late))));
    }
    EXPECT_THROW(impatient.barrier(), DeviceError) << "its order of operations is lost";
  }
  comm.barrier();
}

TEST_F(CommunicatorTest, CancelEndsAWait) {
  if (size == 1) GTEST_SKIP() << "there is nobody to wait for";
  const auto other = comm.duplicate();
  if (rank == 0) {
    std::thread thread([&] { EXPECT_THROW(other->barrier(), DeviceError); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    other->cancel();
    thread.join();
  }
  other->cancel();
  EXPECT_THROW(other->barrier(), DeviceError);
  comm.barrier();
}

TEST_F(CommunicatorTest, AnErrorOfOneWorkerIsThrownByAll) {
  const int failing = size - 1;
  try {
    run_together(comm, [&] {
      if (rank == failing) throw DataError("worker {} cannot read it", rank);
    });
    ADD_FAILURE() << "nothing was thrown";
  } catch (const SharedError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::data);
    EXPECT_EQ(std::string(error.what()), fmt::format("worker {} cannot read it", failing));
  }
  int calls = 0;
  run_together(comm, [&] { calls++; });
  EXPECT_EQ(calls, 1);
}

TEST_F(CommunicatorTest, TheSessionKnowsItsPlace) {
  EXPECT_EQ(session->local_size(), size);  // these tests run on one host
  EXPECT_EQ(session->local_rank(), rank);
  EXPECT_FALSE(session->host().empty());
  EXPECT_FALSE(MpiSession::library_version().empty());
}

}  // namespace
}  // namespace lockstep
