#pragma once
#include "comm/communicator.h"
#include "model/transformer.h"

namespace lockstep {

// Compares the weights that the workers compute with, by an XXH3 sum of each tensor. Where memory
// or a processor has failed silently, they differ: throws SharedError (exit code 4) on every
// worker, naming the first tensor and the workers that do not agree with most. Collective.
void check_replicas(Transformer& model, int64_t step, Communicator& communicator);

}  // namespace lockstep
