#include "cuda_emulation/graphs.h"

#include <algorithm>
#include <utility>

using cuda_emulation::Completion;
using cuda_emulation::count_handle;
using cuda_emulation::MakeStep;
using cuda_emulation::report;
using cuda_emulation::Scheduler;
using cuda_emulation::Step;

namespace {

struct Node {
  const char* name;
  MakeStep make;
  std::vector<int> after;
  CUstream_st* lane;  // that it was captured in, by whose weight it is chosen
};

}  // namespace

struct CUgraph_st {
  std::vector<Node> nodes;
};

// Belongs to the streams and events that take part in it.
struct cuda_emulation::Capture {
  std::vector<Node> nodes;
  CUstream_st* origin;  // where it began
  bool forbids_unsafe_calls;
  bool spoilt = false;
};
using cuda_emulation::Capture;

struct CUgraphExec_st {
  std::vector<Node> nodes;
  std::shared_ptr<Completion> last_launch;
};

namespace {

// One launch of a graph: a step of its stream whose nodes run one at a time, in any order that
// their edges permit; other streams run between them.
class GraphRun {
 public:
  GraphRun(const std::vector<Node>& nodes, std::shared_ptr<Completion> previous)
      : previous_(std::move(previous)), followers_(nodes.size()), num_left_(nodes.size()) {
    for (size_t i = 0; i < nodes.size(); i++) {
      steps_.push_back(nodes[i].make());
      lanes_.push_back(nodes[i].lane);
      num_awaited_.push_back(nodes[i].after.size());
      for (const int before : nodes[i].after) followers_[static_cast<size_t>(before)].push_back(i);
      if (nodes[i].after.empty()) ready_.push_back(i);
    }
  }

  bool operator()() {
    Scheduler& scheduler = Scheduler::instance();
    size_t chosen = 0;
    {
      const auto lock = scheduler.lock();
      if (previous_ != nullptr && !previous_->done) return false;  // launches never overlap
      if (num_left_ == 0) return true;
      std::vector<CUstream_st*> lanes;
      for (const size_t node : ready_) lanes.push_back(lanes_[node]);
      chosen = scheduler.choose(lanes);
    }
    const size_t node = ready_[chosen];
    if (!steps_[node]()) return false;
    ready_.erase(ready_.begin() + static_cast<std::ptrdiff_t>(chosen));
    for (const size_t follower : followers_[node]) {
      if (--num_awaited_[follower] == 0) ready_.push_back(follower);
    }
    return --num_left_ == 0;
  }

 private:
  std::shared_ptr<Completion> previous_;
  std::vector<Step> steps_;
  std::vector<CUstream_st*> lanes_;
  std::vector<std::vector<size_t>> followers_;
  std::vector<size_t> num_awaited_;
  std::vector<size_t> ready_;
  size_t num_left_;
};

// Whether each node comes before the end of the stream where the capture began.
bool all_joined(const Capture& capture) {
  std::vector<bool> joined(capture.nodes.size());
  std::vector<int> left = capture.origin->capture_tail;
  while (!left.empty()) {
    const auto node = static_cast<size_t>(left.back());
    left.pop_back();
    if (joined[node]) continue;
    joined[node] = true;
    left.insert(left.end(), capture.nodes[node].after.begin(), capture.nodes[node].after.end());
  }
  return std::ranges::find(joined, false) == joined.end();
}

void leave(const std::shared_ptr<Capture>& capture) {
  for (CUstream_st* stream : Scheduler::instance().active()) {
    if (stream->capture != capture) continue;
    stream->capture = nullptr;
    stream->capture_tail.clear();
  }
}

}  // namespace

namespace cuda_emulation {

void capture_node(CUstream_st& stream, const char* name, MakeStep make) {
  std::vector<Node>& nodes = stream.capture->nodes;
  nodes.push_back({name, std::move(make), stream.capture_tail, &stream});
  stream.capture_tail = {static_cast<int>(nodes.size()) - 1};
}

cudaError_t refuse_in_capture(const char* call, const CUstream_st* stream) {
  Scheduler& scheduler = Scheduler::instance();
  bool refused = false;
  for (const CUstream_st* captured : scheduler.active()) {
    if (captured->capture == nullptr) continue;
    const bool concerned = stream == nullptr || stream == scheduler.legacy()
                               ? captured->capture->forbids_unsafe_calls
                               : captured == stream;
    captured->capture->spoilt |= concerned;
    refused |= concerned;
  }
  if (!refused) return cudaSuccess;
  return report(cudaErrorStreamCaptureUnsupported, std::string(call) + " during a capture");
}

cudaError_t refuse_legacy_stream_in_capture() {
  for (const CUstream_st* stream : Scheduler::instance().active()) {
    if (stream->capture == nullptr || !stream->blocking) continue;
    stream->capture->spoilt = true;
    return report(cudaErrorStreamCaptureImplicit,
                  "the legacy stream was used while a blocking stream is captured");
  }
  return cudaSuccess;
}

cudaError_t capture_wait(CUstream_st& stream, const CUevent_st& event) {
  if (event.capture == nullptr) {
    if (event.recorded == nullptr) return cudaSuccess;
    stream.capture->spoilt = true;
    return report(cudaErrorStreamCaptureIsolation,
                  "a captured stream waits for an event from outside the capture");
  }
  if (stream.capture != nullptr && stream.capture != event.capture) {
    return report(cudaErrorStreamCaptureMerge, "a wait for an event of another capture");
  }
  if (event.capture->origin->capture != event.capture) {
    return report(cudaErrorCapturedEvent, "a wait for an event of a capture that has ended");
  }
  stream.capture = event.capture;
  for (const int node : event.capture_tail) {
    if (std::ranges::find(stream.capture_tail, node) == stream.capture_tail.end()) {
      stream.capture_tail.push_back(node);
    }
  }
  return cudaSuccess;
}

void end_all_captures() {
  for (CUstream_st* stream : Scheduler::instance().active()) {
    stream->capture = nullptr;
    stream->capture_tail.clear();
  }
}

}  // namespace cuda_emulation

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Scheduler& scheduler = Scheduler::instance();
  const auto lock = scheduler.lock();
  CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr || stream == scheduler.legacy() || stream->capture != nullptr) {
    return report(cudaErrorStreamCaptureUnsupported, "this stream cannot be captured");
  }
  const bool forbids_unsafe_calls = mode != cudaStreamCaptureModeRelaxed;
  stream->capture = std::make_shared<Capture>(
      Capture{.nodes = {}, .origin = stream, .forbids_unsafe_calls = forbids_unsafe_calls});
  stream->capture_tail.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  Scheduler& scheduler = Scheduler::instance();
  const auto lock = scheduler.lock();
  *graph = nullptr;
  CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr || stream->capture == nullptr) {
    return report(cudaErrorIllegalState, "the end of a capture that never began");
  }
  const std::shared_ptr<Capture> captured = stream->capture;
  if (captured->origin != stream) {
    captured->spoilt = true;
    return report(cudaErrorStreamCaptureUnmatched, "a capture began in another stream");
  }
  const bool joined = all_joined(*captured);
  leave(captured);
  if (captured->spoilt) {
    return report(cudaErrorStreamCaptureInvalidated, "a refused call spoilt the capture");
  }
  if (!joined) {
    return report(cudaErrorStreamCaptureUnjoined, "a stream was forked in a capture, not joined");
  }
  count_handle("graphs", 1);
  *graph = new CUgraph_st{std::move(captured->nodes)};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  Scheduler& scheduler = Scheduler::instance();
  const auto lock = scheduler.lock();
  const CUstream_st* stream = scheduler.find(handle);
  if (stream == nullptr) return report(cudaErrorInvalidResourceHandle, "a destroyed stream");
  *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
            : stream->capture->spoilt  ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new CUgraphExec_st{graph->nodes, nullptr};
  count_handle("executable graphs", 1);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) return report(cudaErrorNotSupported, "only the number of nodes is told");
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  Scheduler& scheduler = Scheduler::instance();
  {
    auto lock = scheduler.lock();
    if (const cudaError_t code = cuda_emulation::sticky_error()) return code;
    const CUstream_st* stream = scheduler.find(handle);
    if (stream == nullptr) return report(cudaErrorInvalidResourceHandle, "a destroyed stream");
    if (stream->capture != nullptr) {
      return report(cudaErrorStreamCaptureUnsupported, "graphs in graphs are not emulated");
    }
  }
  // Outside the lock: making a step may ask the scheduler for something.
  auto run = std::make_shared<GraphRun>(executable->nodes, executable->last_launch);
  auto lock = scheduler.lock();
  executable->last_launch =
      scheduler.enqueue(lock, scheduler.find(handle), "graph", [run] { return (*run)(); });
  return cuda_emulation::sticky_error();
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;  // a launch holds what it needs
  count_handle("executable graphs", -1);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  count_handle("graphs", -1);
  return cudaSuccess;
}

}  // extern "C"
