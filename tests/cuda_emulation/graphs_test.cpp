#include "cuda_emulation/graphs.h"

#include "cuda_emulation/device_code.h"
#include "cuda_emulation/testing.h"

namespace cuda_emulation::tests {
namespace {

constexpr int kSize = 64;

void affine_kernel(float* out, const float* in, float factor, float term) {
  const unsigned i = threadIdx.x;
  out[i] = factor * in[i] + term;
}
void affine(float* out, const float* in, float factor, float term, cudaStream_t stream) {
  EXPECT_EQ(launch(affine_kernel, dim3(1), dim3(kSize), 0, stream, out, in, factor, term),
            cudaSuccess);
}

// A stream that forks and joins: x = (2x + 1) + (3x), through two buffers.
struct Program {
  Stream stream, side;
  Event forked, joined;
  Array<float> x{std::vector<float>(kSize, 1.0f)}, twice{kSize}, thrice{kSize};

  void enqueue(bool join = true) {
    cudaEventRecord(forked, stream);
    cudaStreamWaitEvent(side, forked, 0);
    affine(twice.data(), x.data(), 2, 1, stream);
    affine(thrice.data(), x.data(), 3, 0, side);
    cudaEventRecord(joined, side);
    if (join) cudaStreamWaitEvent(stream, joined, 0);
    const auto add = +[](float* out, const float* a, const float* b) {
      out[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x];
    };
    launch(add, dim3(1), dim3(kSize), 0, stream, x.data(), twice.data(), thrice.data());
  }
  cudaError_t capture(cudaGraph_t* graph, bool join = true) {
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    enqueue(join);
    return cudaStreamEndCapture(stream, graph);
  }
};

TEST(Graphs, RunWhatWasCapturedEachTimeTheyAreLaunched) {
  for (int seed = 0; seed < kNumSeeds; seed++) {
    begin_with_seed(seed);
    Program program;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(program.capture(&graph), cudaSuccess);
    size_t num_nodes = 0;
    cudaGraphGetNodes(graph, nullptr, &num_nodes);
    EXPECT_EQ(num_nodes, 3u);
    EXPECT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
    EXPECT_EQ(program.x.values()[0], 1);  // a capture runs nothing
    for (int i = 0; i < 3; i++) EXPECT_EQ(cudaGraphLaunch(executable, program.stream), cudaSuccess);
    program.enqueue();  // the same by itself, after them
    cudaGraphExecDestroy(executable);
    EXPECT_EQ(cudaStreamSynchronize(program.stream), cudaSuccess);
    EXPECT_EQ(program.x.values().back(), 781);  // 1, 6, 31, 156, 781
  }
}

class Capture : public testing::Test {
 protected:
  void SetUp() override {
    begin_with_seed(0);
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  }
  // The capture ends with this code, and the stream works again.
  void expect_end(cudaError_t code) {
    cudaGraph_t graph = nullptr;
    said_by([&] { EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), code); });
    EXPECT_EQ(graph != nullptr, code == cudaSuccess);
    if (graph != nullptr) cudaGraphDestroy(graph);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    cudaGetLastError();
  }
  template <class F>
  void expect_refused(F call) {
    said_by([&] { EXPECT_EQ(call(), cudaErrorStreamCaptureUnsupported); });
    cudaStreamCaptureStatus status{};
    cudaStreamIsCapturing(stream_, &status);
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    expect_end(cudaErrorStreamCaptureInvalidated);
  }

  Stream stream_, other_;
  Event event_;
  void* memory_ = nullptr;
};

TEST_F(Capture, MayBeEmpty) { expect_end(cudaSuccess); }
TEST_F(Capture, RefusesToAllocate) {
  expect_refused([&] { return cudaMalloc(&memory_, 4); });
}
TEST_F(Capture, RefusesToSynchronize) {
  expect_refused([&] { return cudaStreamSynchronize(stream_); });
}
TEST_F(Capture, RefusesToQuery) {
  expect_refused([&] { return cudaStreamQuery(stream_); });
}
TEST_F(Capture, RefusesToSynchronizeTheDevice) {
  expect_refused([] { return cudaDeviceSynchronize(); });
}
TEST_F(Capture, LetsOtherStreamsBe) {
  EXPECT_EQ(cudaStreamSynchronize(other_), cudaSuccess);
  expect_end(cudaSuccess);
}
TEST_F(Capture, RefusesEventsFromOutside) {
  cudaEventRecord(event_, other_);
  said_by(
      [&] { EXPECT_EQ(cudaStreamWaitEvent(stream_, event_, 0), cudaErrorStreamCaptureIsolation); });
  expect_end(cudaErrorStreamCaptureInvalidated);
}
TEST_F(Capture, RefusesTheHostToWaitForItsEvents) {
  cudaEventRecord(event_, stream_);
  said_by([&] {
    EXPECT_EQ(cudaEventSynchronize(event_), cudaErrorCapturedEvent);
    EXPECT_EQ(cudaEventQuery(event_), cudaErrorCapturedEvent);
  });
  expect_end(cudaSuccess);
}
TEST_F(Capture, RefusesPageableCopies) {
  float value = 0;
  said_by([&] {
    EXPECT_NE(cudaMemcpyAsync(&value, &value, 4, cudaMemcpyDefault, stream_), cudaSuccess);
  });
  cudaGetLastError();
  expect_end(cudaSuccess);
}

TEST(CaptureOfTwoStreams, MustBeJoined) {
  begin_with_seed(0);
  Program program;
  cudaGraph_t graph = nullptr;
  said_by([&] { EXPECT_EQ(program.capture(&graph, false), cudaErrorStreamCaptureUnjoined); });
}

TEST(CaptureOfTwoStreams, MustEndWhereItBegan) {
  begin_with_seed(0);
  Program program;
  cudaGraph_t graph = nullptr;
  cudaStreamBeginCapture(program.stream, cudaStreamCaptureModeGlobal);
  program.enqueue();
  said_by([&] {
    EXPECT_EQ(cudaStreamEndCapture(program.side, &graph), cudaErrorStreamCaptureUnmatched);
    EXPECT_EQ(cudaStreamEndCapture(program.stream, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(cudaStreamEndCapture(program.stream, &graph), cudaErrorIllegalState);
  });
}

TEST(CaptureOfABlockingStream, RefusesTheLegacyStream) {
  begin_with_seed(0);
  Array<float> array(kSize);
  cudaStream_t stream = nullptr;
  cudaStreamCreate(&stream);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  cudaGraph_t graph = nullptr;
  said_by([&] {
    EXPECT_EQ(cudaMemset(array.data(), 0, 4), cudaErrorStreamCaptureImplicit);
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  });
  cudaStreamDestroy(stream);
}

TEST(Events, TellWhenWorkIsDone) {
  for (int seed = 0; seed < kNumSeeds; seed++) {
    begin_with_seed(seed);
    Stream stream;
    Array<float> array(kSize);
    cudaEvent_t begin = nullptr, end = nullptr;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    EXPECT_EQ(cudaEventQuery(end), cudaSuccess);  // never recorded
    cudaEventRecord(begin, stream);
    cudaMemsetAsync(array.data(), 0, 4, stream);
    cudaEventRecord(end, stream);
    int polls = 0;
    while (cudaEventQuery(end) == cudaErrorNotReady) ASSERT_LT(++polls, 10000);
    float milliseconds = -1;
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaSuccess);
    EXPECT_GE(milliseconds, 0);
    EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
    cudaEventDestroy(begin), cudaEventDestroy(end);
    said_by([&] { EXPECT_EQ(cudaEventRecord(end, stream), cudaErrorInvalidResourceHandle); });
  }
}

}  // namespace
}  // namespace cuda_emulation::tests
