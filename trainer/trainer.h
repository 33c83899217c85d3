#pragma once
#include <functional>

#include "comm/communicator.h"
#include "core/check.h"
#include "trainer/config.h"
#include "trainer/run_status.h"

namespace lockstep {

// Trains until config.steps, or until a stop is requested: then saves and returns
// ExitCode::stopped. Collective. Resumes when the run folder holds a checkpoint; throws UsageError
// when the options contradict it, naming both values. `accepted` is called on every worker when
// nothing does and the run folder is there, before the first step; what it throws on any, all
// throw. `status`, on the first worker, is told how the run is doing, but not how it ends.
ExitCode train(const TrainConfig& config, Communicator& communicator,
               const std::function<void()>& accepted = nullptr, StatusFile* status = nullptr);

// Asks the running train to save and return after the current step. Safe in a signal handler.
void request_stop() noexcept;

}  // namespace lockstep
