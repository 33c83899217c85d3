#pragma once
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "core/device.h"

namespace lockstep {

// Communicator for the memory of GPUs, over NCCL; defined in a build with CUDA only. Each worker
// has made its GPU current. Tensors are on the device, and an operation is enqueued in its stream.
// What the host itself says to its peers (texts, float64 sums, barriers) goes over `host`, which
// must outlive this.
//
// A thread watches what was enqueued: when an operation is not done within the deadline, or NCCL
// reports that it failed, it aborts NCCL's communicator, so that nothing hangs, and the next call
// throws DeviceError with the operation's name and the workers that are missing. Collective.
//
// `algorithm`: "Ring", "Tree" or another of NCCL's names, which then computes every operation of
// this communicator or refuses it; empty: NCCL chooses one for each.
std::unique_ptr<Communicator> nccl_communicator(Communicator& host, double deadline_s = 600,
                                                const std::string& algorithm = "");

// NCCL refuses a GPU that another worker has ("Duplicate GPU detected"), unless it takes them to be
// on different hosts. This makes it do so, for this worker and from the first communicator on; what
// workers then say to each other goes over a network interface. Sets NCCL_HOSTID unless it is set;
// not tried on a real GPU yet.
void let_workers_share_gpus(int rank);

// From here on Buffer::for_peers has memory that NCCL can register: by ncclMemAlloc.
void use_nccl_memory();

// "2.28.9". Defined in a build with CUDA only.
LibraryVersion nccl_version();
// Why NCCL is not to be used: it is not found, or too old; empty where it is. Likewise.
std::string nccl_obstacle();

}  // namespace lockstep
