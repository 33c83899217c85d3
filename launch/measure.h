#pragma once
#include <filesystem>

#include "comm/communicator.h"
#include "core/device.h"

// What this worker's share of the machine achieves, beside what kernels/machine.h measures. Each
// measurement takes about a second at most.
namespace lockstep::launch {

// Gradients summed over the workers, 32 MiB at a time, in bytes a second. Collective.
double all_reduce_rate(Communicator& communicator);

// Writing a file of 128 MiB in `folder` and flushing it to disk, in bytes a second. Throws
// DataError when the folder cannot be written or is full. The file is removed.
double disk_rate(const std::filesystem::path& folder);

}  // namespace lockstep::launch
