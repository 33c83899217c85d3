#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/mpi_session.h"
#include "core/device.h"

// Which GPU each worker computes on, and whether the workers are alike enough to get the same bits.
namespace lockstep::launch {

// GPUs of this architecture and newer are used: A100, RTX 30.
inline constexpr int kOldestArchitecture = 80;    // 10 * major + minor of the compute capability
std::string architecture_text(int architecture);  // "8.0"
std::string too_old(int gpu);                     // words that say so; empty where it is not

struct GpuChoice {
  int index = -1;   // among the GPUs that the worker sees; -1: it sees none
  int sharers = 1;  // workers that compute on it, this one included
};

// seen[r]: the ids of the GPUs that worker r sees, be it all of its host's or, under a batch
// system, one of its own. By rank, each takes of them what the fewest have taken, the first of
// several.
std::vector<GpuChoice> deal_gpus(const std::vector<std::vector<std::string>>& seen);

// What this worker gets of that. Collective where there is a session.
GpuChoice choose_gpu(MpiSession* session);

// Makes that GPU the current one, ready for several workers where they share it. Throws DeviceError
// where they may not (`share`), when it is too old, and when several workers have no NCCL.
// Collective where there is a session.
void take_gpu(bool share, MpiSession* session);

// Something that decides which bits a worker computes: {"GPU", "NVIDIA H100, ..."}.
struct Trait {
  std::string what, value;
};

// Of this worker, computing on this device: on its current GPU.
std::vector<Trait> traits(Device device);
nlohmann::json to_json(const std::vector<Trait>& traits);  // [["GPU", "NVIDIA H100, ..."], ...]
std::vector<Trait> traits_from_json(const nlohmann::json& traits);

// What is wrong with workers of these traits and hosts, by rank: a line that names two workers and
// both values, and a line of what to do; empty where all are alike in what all have.
std::string difference(const std::vector<std::vector<Trait>>& workers,
                       const std::vector<std::string>& hosts);

// Throws DeviceError with the difference between the workers' traits, where there is one.
// Collective.
void check_alike(Device device, MpiSession& session);

}  // namespace lockstep::launch
