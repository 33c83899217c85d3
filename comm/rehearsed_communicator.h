#pragma once
#include <memory>

#include "comm/communicator.h"

namespace lockstep {

// A communicator of worker `rank` of `workers` without peers, for a Rehearsal: collective
// operations note in their stream what this worker would send, by algorithms that send the least (a
// ring, or each its part to each), and change nothing.
std::unique_ptr<Communicator> rehearsed_communicator(int rank, int workers);

}  // namespace lockstep
