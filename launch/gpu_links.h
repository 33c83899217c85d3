#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/mpi_session.h"
#include "launch/findings.h"

// What NCCL reaches between the workers' GPUs, for doctor.
namespace lockstep::launch {

// Measures the all-reduce over all workers, each on its current GPU: by the algorithm that NCCL
// chooses, as training does, then by ring and by tree. Null where no worker has a GPU; else
//
//   workers     how many
//   obstacle    why nothing was measured, where nothing was
//   algorithms  by "choice", "ring", "tree": rates, a list of size_bytes, seconds,
//               algorithm_bytes_per_second, bus_bytes_per_second; and failure, where one ended
//               it. "ring" and "tree" are only there where NCCL's choice works
//
// `cuda`: what examine_gpus said of this worker. The same on every worker. Collective.
nlohmann::json examine_gpu_links(const nlohmann::json& cuda, MpiSession& session);

// What is wrong with them: NCCL does not work, or not by each algorithm; from 1 MiB on, its choice
// stays below half of what another algorithm reaches, or the best of them below 100 MB/s.
void find_in_gpu_links(const nlohmann::json& links, std::vector<Finding>& findings);

// A table of them; "" where they are null.
std::string gpu_links_text(const nlohmann::json& links);

}  // namespace lockstep::launch
