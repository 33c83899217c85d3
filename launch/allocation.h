#pragma once
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/mpi_session.h"
#include "launch/findings.h"

// What doctor looks at because several hosts have to work together: their links, clocks, disks,
// and whether they see the same dataset and run folder.
namespace lockstep::launch {

// What the job will use; empty where it was not said.
struct Job {
  std::filesystem::path data, run;
};

// Adds to what a worker knows. Collective.
//
//   interfaces             of its host: name, address, subnet
//   mpi_interfaces         those that Open MPI was told to use
//   clock_s                seconds since 1970, at the same moment on all
//   links                  to workers of higher rank: peer, latency_s, bytes_per_second; between
//                          the first workers of the hosts, or all workers of the only host
//   disk_folder, disk_free_bytes, disk_bytes_per_second or disk_error
//                          of a host's first worker
//   shares_folder          whether this host's first worker sees what worker 0 writes beside --run
//   dataset, dataset_error of a host's first worker: XXH3 of dataset.json, or what is wrong
void examine_allocation(nlohmann::json& worker, MpiSession& session, const Job& job);

// What is wrong between the hosts.
void find_in_allocation(const nlohmann::json& workers, std::vector<Finding>& findings);

// "eth0 10.0.0.5, ib0 10.1.0.5"
std::string interfaces_text(const nlohmann::json& worker);
// A table of the links, slow ones marked; "" where there are none.
std::string links_text(const nlohmann::json& workers);

}  // namespace lockstep::launch
