#include "launch/findings.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "comm/mpi_session.h"
#include "launch/allocation.h"
#include "launch/gpus.h"
#include "launch/text.h"
#include "launch/worker_gpus.h"

namespace lockstep::launch {
namespace {

using nlohmann::json;
constexpr int64_t kMiB = int64_t{1} << 20;

bool on_path(const char* program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (access((std::filesystem::path(folder) / program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

void find_in_mpi(std::vector<Finding>& findings) {
  if (MpiSession::under_launcher()) return;
  if (!on_path("mpirun")) {
    findings.push_back({false, "mpirun is not on the PATH: only one worker can be started",
                        "apt-get install openmpi-bin, or on a cluster: module load openmpi"});
  } else if (geteuid() == 0 && std::getenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") == nullptr) {
    findings.push_back({false, "mpirun refuses to run as root",
                        "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"});
  }
}

// All workers of one host together.
void find_in_host(const std::string& host, const std::vector<json>& workers,
                  std::vector<Finding>& findings) {
  const json& first = workers.front();
  std::set<int> cores;
  for (const json& worker : workers) {
    for (const int core : worker["cores"]) cores.insert(core);
  }
  const auto usable = static_cast<int>(cores.size());
  const auto there = first["cores_of_host"].get<int>();
  const auto count = static_cast<int>(workers.size());
  if (usable < there) {
    findings.push_back(
        {false, fmt::format("{}: the workers are bound to {} of {} cores", host, usable, there),
         "mpirun --bind-to none ... lets them share all of them"});
  }
  if (count > usable) {
    findings.push_back(
        {false,
         fmt::format("{}: {} workers share {} cores, and wait for each other", host, count, usable),
         fmt::format("mpirun -np {} ... or one worker a socket or host", usable)});
  }
  if (first["load"].get<double>() > there + 0.5 && first["load"].get<double>() > 2 * count) {
    findings.push_back(
        {false,
         fmt::format("{}: other programs are running (load {:.1f} on {} cores), so the "
                     "rates measured are too low",
                     host, first["load"].get<double>(), there),
         "top shows which"});
  }
  if (first["memory_free_bytes"].get<int64_t>() < 1024 * kMiB) {
    findings.push_back({false,
                        fmt::format("{}: only {} of memory are available", host,
                                    size_text(first["memory_free_bytes"])),
                        "end other programs, or raise the container's limit"});
  }
  // Open MPI keeps some megabytes of buffers a worker there.
  if (count > 1 && first["shared_memory_bytes"].get<int64_t>() < 8 * kMiB * count) {
    findings.push_back({true,
                        fmt::format("{}: /dev/shm has {} free, too little for {} workers", host,
                                    size_text(first["shared_memory_bytes"]), count),
                        "mount -o remount,size=1g /dev/shm, or docker run --shm-size=1g"});
  }
  find_in_gpus(host, workers, findings);
}

// Workers must be alike to get the same bits, and want the same instructions.
void find_between_workers(const json& workers, std::vector<Finding>& findings) {
  const auto differ = [&](const char* key) -> std::string {
    for (const json& worker : workers) {
      if (worker[key] != workers[0][key]) {
        return fmt::format("{} on {}, {} on {}", workers[0][key].dump(),
                           workers[0]["host"].get<std::string>(), worker[key].dump(),
                           worker["host"].get<std::string>());
      }
    }
    return "";
  };
  if (const auto values = differ("mpi"); !values.empty()) {
    findings.push_back({true, fmt::format("the hosts have different versions: {}", values),
                        "install the same on all, or start the same program from a shared disk"});
  }
  std::vector<std::vector<Trait>> traits;
  std::vector<std::string> hosts;
  for (const json& worker : workers) {
    traits.push_back(traits_from_json(worker["traits"]));
    hosts.push_back(worker["host"]);
  }
  if (const std::string what = difference(traits, hosts); !what.empty()) {
    const size_t line_end = what.find('\n');
    findings.push_back({true, what.substr(0, line_end), what.substr(line_end + 1)});
  }
  if (const auto values = differ("instruction_set"); !values.empty()) {
    findings.push_back(
        {false,
         fmt::format("the hosts have different instructions ({}): the slowest sets the pace",
                     values),
         "ask the batch system for hosts of one kind"});
  }
}

}  // namespace

std::vector<Finding> find_problems(const json& workers) {
  std::vector<Finding> findings;
  find_in_mpi(findings);
  std::map<std::string, std::vector<json>> hosts;
  for (const json& worker : workers) hosts[worker["host"].get<std::string>()].push_back(worker);
  for (const auto& [host, here] : hosts) find_in_host(host, here, findings);
  find_between_workers(workers, findings);
  find_in_allocation(workers, findings);
  return findings;
}

}  // namespace lockstep::launch
