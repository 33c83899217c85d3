#pragma once
#include <cuda_runtime.h>

#include <vector>

#include "cuda_emulation/nccl_communicator.h"
#include "cuda_emulation/scheduler.h"

// Operations of the emulated NCCL, as steps of the scheduler.
namespace cuda_emulation {

enum class Collective : int32_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  all_to_all,
  broadcast,
  reduce,
  send,
  receive
};

struct NcclOperation {
  Collective kind;
  const void* send;
  void* receive;
  size_t count;  // elements, of what goes to or comes from one rank
  ncclDataType_t type;
  int32_t reduction;  // an ncclRedOp_t
  int32_t peer;       // the root, or the other one
  ncclComm* communicator;
  cudaStream_t stream;

  bool is_point_to_point() const { return kind == Collective::send || kind == Collective::receive; }
  bool reduces() const {
    return kind == Collective::all_reduce || kind == Collective::reduce_scatter ||
           kind == Collective::reduce;
  }
};

size_t element_bytes(ncclDataType_t type);  // 0: not emulated

// The step that runs a group of operations together, once all that was issued before it to their
// communicators has run. Ranks tell each other what they are doing: where they disagree on the
// operation, its type or count, the communicator has the error ncclInvalidUsage, and the result is
// NaN. LOCKSTEP_EMULATION_NCCL_FAIL=rank:n breaks the nth operation of each communicator on a rank
// of the world: the communicator has the error ncclRemoteError, and the operation never ends.
MakeStep make_group(std::vector<NcclOperation> operations);

}  // namespace cuda_emulation
