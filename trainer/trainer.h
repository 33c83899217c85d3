#pragma once
#include "comm/communicator.h"
#include "core/check.h"
#include "trainer/config.h"

namespace lockstep {

// Trains until config.steps, or until a stop is requested: then saves and returns
// ExitCode::stopped. Collective. Resumes when the run folder holds a checkpoint; throws UsageError
// when the options contradict it, naming both values.
ExitCode train(const TrainConfig& config, Communicator& communicator);

// Asks the running train to save and return after the current step. Safe in a signal handler.
void request_stop() noexcept;

}  // namespace lockstep
