#pragma once
#include <filesystem>

#include "comm/mpi_session.h"
#include "trainer/run_lease.h"

namespace lockstep::launch {

// Whether all workers see the run folder that the first one holds the lease of, while nothing is
// lost yet: each writes its part of a checkpoint there, hours later. Who does not see it looks
// again for `patience_s` seconds, for a network file system may show an old state for a while.
// Every worker throws SharedError (ExitCode::data), naming the first that does not see it.
// Collective; nothing is checked where the first worker has not taken the lease.
void check_run_is_shared(const RunLease& lease, const std::filesystem::path& run, double patience_s,
                         MpiSession& session);

}  // namespace lockstep::launch
