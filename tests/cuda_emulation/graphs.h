#pragma once
#include "cuda_emulation/scheduler.h"

// Capture of streams into graphs. All functions are called with the scheduler's lock held.
namespace cuda_emulation {

// Appends work to the graph that captures the stream.
void capture_node(CUstream_st& stream, const char* name, MakeStep make);
// Refuses, and spoils the captures concerned, while a stream is captured: of what must not be
// called then at all, on any stream, or (given one) of a synchronisation with that stream.
cudaError_t refuse_in_capture(const char* call, const CUstream_st* stream = nullptr);
// The legacy stream waits for blocking streams, which a capture cannot hold.
cudaError_t refuse_legacy_stream_in_capture();
// cudaStreamWaitEvent where the stream, the event or both belong to a capture.
cudaError_t capture_wait(CUstream_st& stream, const CUevent_st& event);
void end_all_captures();

}  // namespace cuda_emulation
