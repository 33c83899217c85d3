#pragma once
#include <string>

#include "launch/train_options.h"
#include "trainer/config.h"
#include "trainer/training.h"

namespace lockstep::launch {

// `train --dry-run`: what a run of so many workers, `local_workers` of them on this host, would
// need of each worker's device, the largest micro-batches that fit, and, where `gpu` names one of
// known_gpus(), the predicted time of a step, as text. Allocates and runs nothing. Throws
// UsageError when a prediction is asked of a CPU, and DeviceError in a build without CUDA.
std::string dry_run_text(const TrainConfig& config, int workers, int local_workers,
                         const std::string& gpu);

// Its table of memory: a line for each purpose, with its bytes, and the sum.
std::string memory_table(const TrainConfig& config, const Training::Memory& plan);

}  // namespace lockstep::launch
