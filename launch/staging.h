#pragma once
#include <filesystem>

#include "comm/mpi_session.h"

namespace lockstep::launch {

// Copies a dataset to `folder` on every host, unless it is there already, and returns the copy's
// path. The first worker of a host copies, the others wait, for as long as it takes: no deadline
// counts but that of one file. Collective. Throws SharedError (DatasetCopy's failures) on all.
std::filesystem::path stage(const std::filesystem::path& dataset,
                            const std::filesystem::path& folder, MpiSession& session);

}  // namespace lockstep::launch
