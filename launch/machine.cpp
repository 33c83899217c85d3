#include "launch/machine.h"

#include <elf.h>
#include <link.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "comm/agreement.h"

namespace lockstep::launch {
namespace {

std::string first_line(const std::string& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// The value of "key   : value" or "key:  value", as /proc writes them.
std::string proc_value(const std::string& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const auto colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

// Of this process (0) or another. The set grows with the machine: sched_getaffinity refuses one
// that is too small.
std::vector<int> allowed_cpus(pid_t process) {
  for (int capacity = 1024; capacity <= (1 << 20); capacity *= 4) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(capacity));
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(capacity));
    std::vector<int> cpus;
    const bool known = sched_getaffinity(process, bytes, set) == 0;
    for (int i = 0; known && i < capacity; i++) {
      if (CPU_ISSET_S(static_cast<size_t>(i), bytes, set)) cpus.push_back(i);
    }
    CPU_FREE(set);
    if (known) return cpus;
  }
  return {0};
}

// Hardware threads of one core share the name of the first.
std::vector<int> cores_of(const std::vector<int>& cpus) {
  std::set<int> cores;
  for (const int cpu : cpus) {
    const auto siblings =
        first_line(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    cores.insert(siblings.empty() ? cpu : std::atoi(siblings.c_str()));
  }
  return {cores.begin(), cores.end()};
}

// Limits of the container (control groups, version 2 and 1).
double cpu_quota() {
  std::istringstream v2(first_line("/sys/fs/cgroup/cpu.max"));
  double quota = 0, period = 0;
  if (v2 >> quota >> period && period > 0) return quota / period;  // "max 100000": no limit
  quota = std::atof(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").c_str());
  period = std::atof(first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us").c_str());
  return quota > 0 && period > 0 ? quota / period : 0;
}

int64_t memory_limit() {
  for (const char* file :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const int64_t limit = std::atoll(first_line(file).c_str());
    if (limit > 0) return limit;
  }
  return 0;
}

std::string widest_instruction_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) {
    return __builtin_cpu_supports("avx512bf16") ? "AVX-512 with bf16" : "AVX-512";
  }
  return __builtin_cpu_supports("avx2") ? "AVX2" : "SSE2";
#else
  return "baseline of this processor family";
#endif
}

}  // namespace

Machine this_machine() {
  Machine machine;
  machine.cores = cores_of(allowed_cpus(0));
  // The launcher binds its children, not itself.
  machine.cores_of_host =
      static_cast<int>(std::max(machine.cores.size(), cores_of(allowed_cpus(getppid())).size()));
  machine.quota = cpu_quota();
  machine.processor = proc_value("/proc/cpuinfo", "model name");
  if (machine.processor.empty()) machine.processor = "unknown processor";
  machine.instruction_set = widest_instruction_set();
  const auto kib = [](const char* key) {
    return int64_t{1024} * std::atoll(proc_value("/proc/meminfo", key).c_str());
  };
  machine.memory_bytes = kib("MemTotal");
  machine.memory_free_bytes = kib("MemAvailable");
  if (const int64_t limit = memory_limit(); limit > 0 && limit < machine.memory_bytes) {
    machine.memory_bytes = limit;
    machine.memory_free_bytes = std::min(machine.memory_free_bytes, limit);
  }
  return machine;
}

CoreShare share_of_cores(const Machine& machine, MpiSession& session) {
  // What every worker may run on: "host core core ...".
  const std::string mine = fmt::format("{} {}", session.host(), fmt::join(machine.cores, " "));
  std::map<int, int> workers_of_core;  // of this host
  for (const std::string& text : said_by_all(session.world(), mine)) {
    std::istringstream words(text);
    std::string host;
    words >> host;
    for (int core; host == session.host() && words >> core;) workers_of_core[core]++;
  }
  double share = 0;
  for (const int core : machine.cores) share += 1.0 / workers_of_core[core];
  if (machine.quota > 0) share = std::min(share, machine.quota / session.local_size());
  // The sum of n shares of 1/n may fall just short of 1.
  return {std::max(1, static_cast<int>(std::floor(share + 1e-6))),
          static_cast<int>(workers_of_core.size())};
}

std::string build_id() {
  std::string id;
  // Of the first object, which is the program. Its notes: sizes of name and content, a type, the
  // name, the content, each padded to 4 bytes.
  const auto read = [](dl_phdr_info* object, size_t, void* out) {
    for (int i = 0; i < object->dlpi_phnum; i++) {
      const ElfW(Phdr)& segment = object->dlpi_phdr[i];
      if (segment.p_type != PT_NOTE || segment.p_align > 4) continue;
      const auto* at = reinterpret_cast<const unsigned char*>(object->dlpi_addr + segment.p_vaddr);
      for (const auto* end = at + segment.p_memsz; at < end;) {
        const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(at);
        const unsigned char* content = at + sizeof *note + (note->n_namesz + 3) / 4 * 4;
        at = content + (note->n_descsz + 3) / 4 * 4;
        if (note->n_type != NT_GNU_BUILD_ID) continue;
        for (unsigned k = 0; k < std::min(note->n_descsz, 8u); k++) {
          *static_cast<std::string*>(out) += fmt::format("{:02x}", content[k]);
        }
      }
    }
    return 1;
  };
  dl_iterate_phdr(read, &id);
  return id;
}

int64_t space_bytes(const std::filesystem::path& folder) {
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  return error ? 0 : static_cast<int64_t>(space.available);
}

double load_average() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

bool has_nvidia_gpu() { return std::filesystem::exists("/dev/nvidia0"); }

}  // namespace lockstep::launch
