#include <cuda_bf16.h>
#include <mpi.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "cuda_emulation/scheduler.h"
#include "cuda_emulation/testing.h"

// Collectives of the emulated NCCL, under mpirun with any number of processes.
namespace cuda_emulation::tests {
namespace {

class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    begin_with_seed(1);
  }
  void TearDown() override { MPI_Barrier(MPI_COMM_WORLD); }

  ncclComm_t join(int size, int rank, bool blocking = true) {
    ncclUniqueId id;
    if (rank_ == 0) ncclGetUniqueId(&id);
    MPI_Bcast(&id, sizeof(id), MPI_BYTE, 0, MPI_COMM_WORLD);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = blocking ? 1 : 0;
    ncclComm_t communicator = nullptr;
    ncclResult_t code = ncclCommInitRankConfig(&communicator, size, id, rank, &config);
    while (code == ncclInProgress) ncclCommGetAsyncError(communicator, &code);
    EXPECT_EQ(code, ncclSuccess);
    return communicator;
  }
  ncclComm_t join_all() { return join(size_, rank_); }
  // rank * 100 + i
  std::vector<float> numbers(size_t count) const {
    std::vector<float> values(count);
    std::iota(values.begin(), values.end(), static_cast<float>(rank_ * 100));
    return values;
  }
  float sum_of_ranks() const { return static_cast<float>(size_ * (size_ - 1) / 2); }

  int rank_ = 0, size_ = 1;
};

constexpr size_t kCount = 5;

TEST_F(Nccl, CollectivesAreWhatTheySay) {
  ncclComm_t all = join_all();
  const auto size = static_cast<size_t>(size_);
  for (int seed = 0; seed < 10; seed++) {
    begin_with_seed(seed);
    Stream stream;
    Array<float> in(numbers(kCount * size)), sum(kCount * size), part(kCount),
        gathered(kCount * size), exchanged(kCount * size), sent(numbers(kCount));
    EXPECT_EQ(ncclAllReduce(in.data(), sum.data(), kCount * size, ncclFloat, ncclSum, all, stream),
              ncclSuccess);
    ncclReduceScatter(in.data(), part.data(), kCount, ncclFloat, ncclSum, all, stream);
    ncclAllGather(in.data(), gathered.data(), kCount, ncclFloat, all, stream);
    ncclAlltoAll(in.data(), exchanged.data(), kCount, ncclFloat, all, stream);
    ncclBroadcast(sent.data(), sent.data(), kCount, ncclFloat, size_ - 1, all, stream);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const auto sums = sum.values(), parts = part.values(), all_gathered = gathered.values();
    const auto all_exchanged = exchanged.values(), broadcast = sent.values();
    for (size_t i = 0; i < kCount * size; i++) {
      const auto from = static_cast<float>(i / kCount * 100);
      const auto place = static_cast<float>(i % kCount);
      EXPECT_EQ(sums[i], 100 * sum_of_ranks() + static_cast<float>(size * i));
      EXPECT_EQ(all_gathered[i], from + place);
      EXPECT_EQ(all_exchanged[i], from + static_cast<float>(rank_) * kCount + place);
    }
    for (size_t i = 0; i < kCount; i++) {
      EXPECT_EQ(parts[i], sums[static_cast<size_t>(rank_) * kCount + i]);
      EXPECT_EQ(broadcast[i], static_cast<float>((size_ - 1) * 100) + static_cast<float>(i));
    }
  }
  EXPECT_EQ(ncclCommDestroy(all), ncclSuccess);
}

TEST_F(Nccl, ReducesInFp32AndByEachOperation) {
  ncclComm_t all = join_all();
  Stream stream;
  const auto one = __float2bfloat16_rn(static_cast<float>(rank_ + 1));
  Array<__nv_bfloat16> mean(std::vector<__nv_bfloat16>(3, one));
  Array<float> most(numbers(1)), root(numbers(1));
  ncclAllReduce(mean.data(), mean.data(), 3, ncclBfloat16, ncclAvg, all, stream);
  ncclAllReduce(most.data(), most.data(), 1, ncclFloat, ncclMax, all, stream);
  ncclReduce(root.data(), root.data(), 1, ncclFloat, ncclSum, size_ - 1, all, stream);
  cudaStreamSynchronize(stream);
  EXPECT_EQ(__bfloat162float(mean.values()[2]), static_cast<float>(size_ + 1) / 2);
  EXPECT_EQ(most.values()[0], static_cast<float>((size_ - 1) * 100));
  const bool is_root = rank_ == size_ - 1;
  EXPECT_EQ(root.values()[0], is_root ? 100 * sum_of_ranks() : numbers(1)[0]);
  ncclCommDestroy(all);
}

TEST_F(Nccl, GroupsSendAndReceiveOnSeveralStreams) {
  ncclComm_t all = join_all();
  const int next = (rank_ + 1) % size_, before = (rank_ + size_ - 1) % size_;
  for (int seed = 0; seed < 10; seed++) {
    begin_with_seed(seed);
    Stream a, b;
    Array<float> out(numbers(2)), in(2);
    ncclGroupStart();
    EXPECT_EQ(ncclSend(out.data(), 1, ncclFloat, next, all, a), ncclSuccess);
    ncclRecv(in.data(), 1, ncclFloat, before, all, b);
    ncclSend(out.data() + 1, 1, ncclFloat, next, all, a);
    ncclRecv(in.data() + 1, 1, ncclFloat, before, all, b);
    EXPECT_EQ(ncclGroupEnd(), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(b), cudaSuccess);
    const auto first = static_cast<float>(before * 100);
    EXPECT_EQ(in.values(), (std::vector<float>{first, first + 1}));
    cudaStreamSynchronize(a);
  }
  ncclCommDestroy(all);
}

TEST_F(Nccl, CommunicatorsDoNotWaitForEachOther) {
  ncclComm_t first = join_all(), second = join(size_, size_ - 1 - rank_, false);
  for (int seed = 0; seed < 10; seed++) {
    begin_with_seed(seed);
    Stream a, b;
    Array<float> x(std::vector<float>{1}), y(std::vector<float>{1});
    for (int i = 0; i < 5; i++) {
      ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, first, a);
      ncclResult_t code = ncclAllReduce(y.data(), y.data(), 1, ncclFloat, ncclSum, second, b);
      while (code == ncclInProgress) ncclCommGetAsyncError(second, &code);
      EXPECT_EQ(code, ncclSuccess);
    }
    cudaDeviceSynchronize();
    EXPECT_EQ(x.values(), y.values());
  }
  EXPECT_EQ(ncclCommDestroy(first), ncclSuccess);
  ncclResult_t code = ncclCommFinalize(second);
  while (code == ncclInProgress) ncclCommGetAsyncError(second, &code);
  EXPECT_EQ(ncclCommDestroy(second), ncclSuccess);
}

TEST_F(Nccl, OperationsRunWhileTheHostWaitsElsewhere) {
  ncclComm_t all = join_all();
  Stream stream;
  Array<float> x(numbers(1));
  ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, all, stream);
  if (rank_ == 0) cudaStreamSynchronize(stream);  // the others are in the barrier by then
  MPI_Barrier(MPI_COMM_WORLD);
  cudaStreamSynchronize(stream);
  EXPECT_EQ(x.values()[0], 100 * sum_of_ranks());
  ncclCommDestroy(all);
}

TEST_F(Nccl, GraphsHoldCollectives) {
  ncclComm_t all = join_all();
  Stream stream;
  Array<float> x(std::vector<float>{1});
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  EXPECT_EQ(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, all, stream), ncclSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphInstantiate(&executable, graph, 0);
  for (int i = 0; i < 3; i++) cudaGraphLaunch(executable, stream);
  cudaStreamSynchronize(stream);
  EXPECT_EQ(x.values()[0], static_cast<float>(size_ * size_ * size_));
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  ncclCommDestroy(all);
}

TEST_F(Nccl, AnAbortWaitsForGraphs) {
  ncclComm_t all = join_all();
  Stream stream;
  Array<float> x(std::vector<float>{1});
  cudaGraph_t graph = nullptr;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, all, stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  std::atomic<bool> aborted{false};
  std::thread other([&] {
    ncclCommAbort(all);
    aborted = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(aborted);
  cudaGraphDestroy(graph);
  other.join();
}

TEST_F(Nccl, RanksThatDisagreeAreTold) {
  if (size_ == 1) GTEST_SKIP() << "nobody to disagree with";
  for (const bool about_count : {true, false}) {
    ncclComm_t all = join_all();
    Stream stream;
    Array<float> x(numbers(8));
    const size_t count = about_count && rank_ == 0 ? 8 : 4;
    const ncclDataType_t type = !about_count && rank_ == 0 ? ncclInt32 : ncclFloat;
    const std::string said = said_by([&] {
      ncclAllReduce(x.data(), x.data(), count, type, ncclSum, all, stream);
      cudaStreamSynchronize(stream);
    });
    EXPECT_NE(said.find("disagrees"), std::string::npos);
    EXPECT_NE(std::string(ncclGetLastError(all)).find("disagrees"), std::string::npos);
    ncclResult_t code = ncclSuccess;
    ncclCommGetAsyncError(all, &code);
    EXPECT_EQ(code, ncclInvalidUsage);
    EXPECT_EQ(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, all, stream),
              ncclInvalidUsage);
    EXPECT_NE(x.values()[0], x.values()[0]);  // NaN
    EXPECT_EQ(ncclCommAbort(all), ncclSuccess);
  }
}

TEST_F(Nccl, AnAbortFreesTheStreams) {
  ncclComm_t all = join_all();
  Stream stream;
  Event done;
  Array<float> x(numbers(1));
  setenv("LOCKSTEP_EMULATION_NCCL_FAIL", "0:0", 1);
  said_by([&] {
    EXPECT_EQ(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, all, stream), ncclSuccess);
    cudaEventRecord(done, stream);
    for (int i = 0; i < 100; i++) EXPECT_EQ(cudaEventQuery(done), cudaErrorNotReady);
  });
  ncclResult_t code = ncclSuccess;
  ncclCommGetAsyncError(all, &code);
  EXPECT_EQ(code, rank_ == 0 ? ncclRemoteError : ncclSuccess);
  EXPECT_EQ(ncclCommAbort(all), ncclSuccess);
  EXPECT_EQ(cudaEventSynchronize(done), cudaSuccess);
  unsetenv("LOCKSTEP_EMULATION_NCCL_FAIL");
}

TEST_F(Nccl, BadArgumentsAreRefused) {
  ncclComm_t all = join_all();
  Stream stream;
  Array<float> x(numbers(1));
  said_by([&] {
    EXPECT_EQ(ncclBroadcast(x.data(), x.data(), 1, ncclFloat, size_, all, stream),
              ncclInvalidArgument);
    EXPECT_EQ(ncclAllGather(nullptr, x.data(), 1, ncclFloat, all, stream), ncclInvalidArgument);
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
    EXPECT_EQ(ncclCommDestroy(all), ncclSuccess);
    EXPECT_EQ(ncclCommDestroy(all), ncclInvalidArgument);
    EXPECT_EQ(ncclAllReduce(x.data(), x.data(), 1, ncclFloat, ncclSum, all, stream),
              ncclInvalidArgument);
  });
}

// Memory by ncclMemAlloc, full of zeros.
void* nccl_memory(size_t size) {
  void* memory = nullptr;
  EXPECT_EQ(ncclMemAlloc(&memory, size), ncclSuccess);
  EXPECT_EQ(cudaMemset(memory, 0, size), cudaSuccess);
  return memory;
}

TEST_F(Nccl, RegisteredMemoryIsUsedAsAnyOther) {
  ncclComm_t all = join_all();
  Stream stream;
  void* x = nccl_memory(kCount * sizeof(float));
  void* handle = nullptr;
  EXPECT_EQ(ncclCommRegister(all, x, kCount * sizeof(float), &handle), ncclSuccess);
  EXPECT_NE(handle, nullptr);
  EXPECT_EQ(ncclAllReduce(x, x, kCount, ncclFloat, ncclSum, all, stream), ncclSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(ncclCommDeregister(all, handle), ncclSuccess);
  said_by([&] {
    EXPECT_EQ(ncclCommDeregister(all, handle), ncclInvalidUsage);
    EXPECT_EQ(ncclCommRegister(all, x, kCount * sizeof(float) + 1, &handle), ncclInvalidArgument);
    EXPECT_EQ(cudaFree(x), cudaErrorInvalidValue);  // it is NCCL's
  });
  EXPECT_EQ(ncclMemFree(x), ncclSuccess);
  EXPECT_EQ(ncclCommDestroy(all), ncclSuccess);
  said_by([&] { EXPECT_EQ(ncclCommRegister(all, x, 1, &handle), ncclInvalidArgument); });
}

TEST_F(Nccl, MemoryThatIsFreedWhileItIsRegistered) {
  ncclComm_t all = join_all();
  Array<float> x(numbers(kCount));
  void* handle = nullptr;
  EXPECT_EQ(ncclCommRegister(all, x.data(), x.size_bytes(), &handle), ncclSuccess);
  EXPECT_NE(said_by([&] { x.free(); }).find("registered with NCCL"), std::string::npos);
  EXPECT_EQ(ncclCommDeregister(all, handle), ncclSuccess);
  EXPECT_EQ(ncclCommDestroy(all), ncclSuccess);
}

TEST_F(Nccl, BuffersThatSomeRanksAloneHaveRegistered) {
  if (size_ == 1) GTEST_SKIP();
  ncclComm_t all = join_all();
  Stream stream;
  Array<float> x(numbers(kCount));
  void* handle = nullptr;
  if (rank_ == 0) {
    EXPECT_EQ(ncclCommRegister(all, x.data(), x.size_bytes(), &handle), ncclSuccess);
  }
  const std::string said = said_by([&] {
    EXPECT_EQ(ncclAllReduce(x.data(), x.data(), kCount, ncclFloat, ncclSum, all, stream),
              ncclSuccess);
    cudaStreamSynchronize(stream);
  });
  EXPECT_NE(said.find("disagrees"), std::string::npos);
  EXPECT_EQ(ncclCommAbort(all), ncclSuccess);  // which ends the registration
}

TEST_F(Nccl, ARegistrationThatNobodyEndsIsALeak) {
  ncclComm_t all = join_all();
  Array<float> x(numbers(kCount));
  void* handle = nullptr;
  EXPECT_EQ(ncclCommRegister(all, x.data(), x.size_bytes(), &handle), ncclSuccess);
  EXPECT_NE(leaks().find("1 registrations with NCCL"), std::string::npos) << leaks();
  EXPECT_EQ(ncclCommDeregister(all, handle), ncclSuccess);
  EXPECT_EQ(ncclCommDestroy(all), ncclSuccess);
}

TEST_F(Nccl, NothingIsLeftBehind) { EXPECT_EQ(leaks(), ""); }

}  // namespace
}  // namespace cuda_emulation::tests

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  testing::InitGoogleTest(&argc, argv);
  const int failed = RUN_ALL_TESTS();
  MPI_Finalize();
  return failed;
}
