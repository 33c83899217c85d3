#pragma once
#include <memory>

#include "comm/communicator.h"

namespace lockstep {

// Communicator for the memory of GPUs, over NCCL; defined in a build with CUDA only. Each worker has
// made its GPU current. Tensors are on the device, and an operation is enqueued in its stream. What
// the host itself says to its peers (texts, float64 sums, barriers) goes over `host`, which must
// outlive this.
//
// A thread watches what was enqueued: when an operation is not done within the deadline, or NCCL
// reports that it failed, it aborts NCCL's communicator, so that nothing hangs, and the next call
// throws DeviceError with the operation's name and the workers that are missing. Collective.
std::unique_ptr<Communicator> nccl_communicator(Communicator& host);

}  // namespace lockstep
