#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "comm/mpi_session.h"

// What the operating system says about this machine and this worker's share of it.
namespace lockstep::launch {

struct Machine {
  std::string processor;          // "AMD EPYC 9575F 64-Core Processor"
  std::string instruction_set;    // the widest that kernels use: "AVX-512 with bf16", "AVX2"
  std::vector<int> cores;         // physical cores that this process may run on
  int cores_of_host = 0;          // that it could run on, had the launcher not bound it
  double quota = 0;               // cores' worth of time that a container allows; 0: no limit
  int64_t memory_bytes = 0;       // of the machine, or the container's limit
  int64_t memory_free_bytes = 0;  // available without swapping
};

Machine this_machine();

struct CoreShare {
  int threads = 1;           // physical cores divided by the workers that share them, at least 1
  int cores_of_workers = 1;  // that the workers of this host may run on, together
};

// Workers that mpirun bound to cores of their own share nothing. Collective.
CoreShare share_of_cores(const Machine& machine, MpiSession& session);

// Names the program as it was linked: no other build has the same. "" when the linker left none.
std::string build_id();

int64_t space_bytes(const std::filesystem::path& folder);  // free to this user; 0 when unknown
double load_average();                                     // of the last minute
bool has_nvidia_gpu();

}  // namespace lockstep::launch
