#pragma once
#include "comm/mpi_session.h"
#include "trainer/config.h"

// Whether a training fits into the memory that is there.
namespace lockstep::launch {

// Of this host: throws UsageError where its workers need more than it has. Otherwise the system
// ends a worker without a word when memory runs out.
void check_host_memory(const TrainConfig& config, const MpiSession& session);

// Of each worker's current GPU, before anything is allocated on it: where the plan of a worker
// needs more than is free, prints the plan and throws DeviceError, which says what would fit.
// Collective.
void check_gpu_memory(const TrainConfig& config, MpiSession& session);

// For a plan that did not fit nonetheless: prints it, and throws DeviceError with these words and
// what to do.
[[noreturn]] void fail_for_gpu_memory(const TrainConfig& config, const MpiSession& session,
                                      const std::string& words);

}  // namespace lockstep::launch
