#include "launch/allocation.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "comm/pair_rates.h"
#include "core/file.h"
#include "data/dataset.h"
#include "data/shard.h"
#include "launch/machine.h"
#include "launch/measure.h"
#include "launch/network.h"
#include "launch/text.h"

namespace lockstep::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr double kClocksApart_s = 1;
constexpr double kStraggler = 0.8;               // of the median rate
constexpr double kSlowLink = 0.5;                // of the median link between hosts
constexpr double kSlowLinkOfHost = 0.25;         // of the median link within one
constexpr double kLateLink = 3, kLate_s = 1e-3;  // times the median latency, and at least
constexpr size_t kHostsShown = 12;               // in a table

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

// The first worker of each host, or, of one host alone, all.
std::vector<int> ranks_to_link(MpiSession& session) {
  const std::vector<std::string> hosts = session.world().gather(session.host());
  std::vector<int> first, all;
  std::string text;
  if (session.rank() == 0) {
    for (size_t rank = 0; rank < hosts.size(); rank++) {
      all.push_back(static_cast<int>(rank));
      if (std::find(hosts.begin(), hosts.begin() + static_cast<int>(rank), hosts[rank]) ==
          hosts.begin() + static_cast<int>(rank)) {
        first.push_back(static_cast<int>(rank));
      }
    }
    text = json(first.size() > 1 ? first : all).dump();
  }
  session.world().broadcast(text, 0);
  return json::parse(text).get<std::vector<int>>();
}

void examine_links(json& worker, MpiSession& session) {
  worker["interfaces"] = json::array();
  for (const Interface& each : network_interfaces()) {
    worker["interfaces"].push_back(
        {{"name", each.name}, {"address", each.address}, {"subnet", each.subnet}});
  }
  const char* told = std::getenv("OMPI_MCA_btl_tcp_if_include");
  worker["mpi_interfaces"] = told == nullptr ? "" : told;
  worker["links"] = json::array();
  if (session.size() == 1) return;
  for (const PairRate& rate : measure_pairs(session, ranks_to_link(session))) {
    worker["links"].push_back({{"peer", rate.peer},
                               {"latency_s", rate.latency_s},
                               {"bytes_per_second", rate.bytes_per_second}});
  }
}

// The folder that exists already: --run itself, or what it will be made in.
fs::path existing_folder(const fs::path& run) {
  fs::path folder = run.empty() ? fs::current_path() : fs::absolute(run);
  std::error_code ignored;
  while (!fs::is_directory(folder, ignored) && folder.has_relative_path()) {
    folder = folder.parent_path();
  }
  return folder;
}

// Throws DataError where the run folder, or one that it lies in, is something else, such as a file.
void check_can_be_made(const fs::path& run) {
  std::error_code ignored;
  for (fs::path path = fs::absolute(run); !fs::is_directory(path, ignored);
       path = path.parent_path()) {
    if (fs::exists(fs::symlink_status(path, ignored))) {
      throw DataError("{} is no folder", path.string());
    }
    if (!path.has_relative_path()) return;
  }
}

void examine_disk(json& worker, const fs::path& folder, const fs::path& run) {
  worker["disk_folder"] = folder.string();
  worker["disk_free_bytes"] = space_bytes(folder);
  try {
    if (!run.empty()) check_can_be_made(run);
    worker["disk_bytes_per_second"] = disk_rate(folder);
  } catch (const DataError& error) {
    worker["disk_error"] = error.what();
  }
}

// Worker 0 leaves a file; who does not find it has another folder of this name. Nothing is known
// where it cannot write.
void examine_sharing(json& worker, MpiSession& session, const fs::path& folder) {
  std::string name = fmt::format(".lockstep-doctor-shared-{}-{}", session.host(), getpid());
  session.world().broadcast(name, 0);
  const fs::path file = folder / name;
  double written = 0;
  if (session.rank() == 0) written = static_cast<bool>(std::ofstream(file) << name << std::flush);
  session.world().all_reduce(&written, 1, ReduceOp::max);
  if (written == 0) return;
  if (session.local_rank() == 0) {
    bool seen = false;
    std::error_code error;
    // Listing asks a network file system anew.
    for (fs::directory_iterator each(folder, error), end; !error && each != end;
         each.increment(error)) {
      seen = seen || each->path().filename() == name;
    }
    worker["shares_folder"] = seen;
  }
  session.world().barrier();
  if (session.rank() == 0) {
    std::error_code ignored;
    fs::remove(file, ignored);
  }
}

void examine_dataset(json& worker, const fs::path& data) {
  try {
    Dataset::open(data);
    const std::string description = read_file(data / "dataset.json");
    worker["dataset"] = xxh3_hex(std::as_bytes(std::span(description)));
  } catch (const DataError& error) {
    worker["dataset_error"] = error.what();
  }
}

struct LinkRate {
  double latency_s, bytes_per_second;
};

std::string rate_text(const LinkRate& rate) {
  return fmt::format("{:.1f} us, {:.3f} GB/s", 1e6 * rate.latency_s, rate.bytes_per_second / 1e9);
}

struct Link {
  json a, b;  // workers
  LinkRate rate;
  bool between_hosts() const { return a["host"] != b["host"]; }
  std::string text() const {
    return fmt::format("worker {} on {} and worker {} on {}", a["rank"].get<int>(),
                       a["host"].get<std::string>(), b["rank"].get<int>(),
                       b["host"].get<std::string>());
  }
};

std::vector<Link> all_links(const json& workers) {
  std::vector<Link> links;
  for (const json& worker : workers) {
    for (const json& link : worker.value("links", json::array())) {
      links.push_back({worker,
                       workers[link["peer"].get<size_t>()],
                       {link["latency_s"], link["bytes_per_second"]}});
    }
  }
  return links;
}

// The median latency, and the median rate.
LinkRate usual(const std::vector<Link>& links) {
  std::vector<double> latencies, rates;
  for (const Link& link : links) {
    latencies.push_back(link.rate.latency_s);
    rates.push_back(link.rate.bytes_per_second);
  }
  return {median(latencies), median(rates)};
}

bool is_slow(const Link& link, const LinkRate& normal) {
  if (!link.between_hosts()) {
    return link.rate.bytes_per_second < kSlowLinkOfHost * normal.bytes_per_second;
  }
  return link.rate.bytes_per_second < std::max(kSlowLink * normal.bytes_per_second, kSlowNetwork) ||
         link.rate.latency_s > std::max(kLateLink * normal.latency_s, kLate_s);
}

void find_slow_links(const json& workers, std::vector<Finding>& findings) {
  const std::vector<Link> links = all_links(workers);
  const LinkRate normal = usual(links);
  for (const Link& link : links) {
    if (!is_slow(link, normal)) continue;
    findings.push_back(
        {false,
         fmt::format("the link between {} is slow: {}; the median is {}", link.text(),
                     rate_text(link.rate), rate_text(normal)),
         link.between_hosts()
             ? "mpirun --mca btl_tcp_if_include NAME chooses the interface; or leave the host out"
             : "end other programs on this host"});
  }
}

// The same address on several hosts belongs to a bridge that leads nowhere else.
void find_bridges(const json& workers, std::vector<Finding>& findings) {
  std::map<std::string, std::map<std::string, std::string>> hosts_of;  // address: host: interface
  for (const json& worker : workers) {
    for (const json& each : worker.value("interfaces", json::array())) {
      hosts_of[each["address"]][worker["host"]] = each["name"];
    }
  }
  for (const auto& [address, hosts] : hosts_of) {
    if (hosts.size() < 2) continue;
    findings.push_back(
        {false,
         fmt::format("{} has the address {} on {} hosts: MPI may wait for answers through it",
                     hosts.begin()->second, address, hosts.size()),
         fmt::format("mpirun --mca btl_tcp_if_exclude lo,{} --mca oob_tcp_if_exclude lo,{}",
                     hosts.begin()->second, hosts.begin()->second)});
  }
}

void find_stragglers(const json& workers, std::vector<Finding>& findings) {
  const auto find = [&](const char* what, const auto& rate) {
    std::vector<double> rates;
    for (const json& worker : workers) rates.push_back(rate(worker));
    const double normal = median(rates);
    for (const json& worker : workers) {
      if (rate(worker) >= kStraggler * normal) continue;
      findings.push_back(
          {false,
           fmt::format("worker {} on {} is slow: {} of {:.3g} TFLOP/s, the median is {:.3g}; all "
                       "wait for it",
                       worker["rank"].get<int>(), worker["host"].get<std::string>(), what,
                       rate(worker) / 1e12, normal / 1e12),
           "end other programs there, or leave the host out"});
    }
  };
  find("products", [](const json& worker) {
    // A thread's: workers may have been given different numbers of cores.
    return worker.value("fp32_flops", 0.0) / worker.value("threads", 1);
  });
  find("GPU products", [](const json& worker) { return worker["cuda"].value("bf16_flops", 0.0); });
}

void find_clocks(const json& workers, std::vector<Finding>& findings) {
  std::map<std::string, double> ahead;
  const double first = workers[0].value("clock_s", 0.0);
  for (const json& worker : workers) {
    ahead.emplace(worker["host"], worker.value("clock_s", first) - first);
  }
  for (const auto& [host, seconds] : ahead) {
    if (std::abs(seconds) <= kClocksApart_s) continue;
    findings.push_back(
        {false,
         fmt::format("the clock of {} is {:.1f} s {} that of {}", host, std::abs(seconds),
                     seconds > 0 ? "ahead of" : "behind", workers[0]["host"].get<std::string>()),
         "set it by chrony or ntp: times in logs and time limits are wrong"});
  }
}

void find_in_data(const json& workers, std::vector<Finding>& findings) {
  const std::string first = workers[0].value("dataset", "");
  for (const json& worker : workers) {
    const std::string host = worker["host"];
    if (worker.contains("dataset_error")) {
      findings.push_back({true,
                          fmt::format("{}: {}", host, worker["dataset_error"].get<std::string>()),
                          "put the dataset where all hosts see it, or copy it to each"});
    } else if (worker.contains("dataset") && !first.empty() && worker["dataset"] != first) {
      findings.push_back({true,
                          fmt::format("{} and {} have different datasets",
                                      workers[0]["host"].get<std::string>(), host),
                          "copy the same folder to both"});
    }
    if (!worker.value("shares_folder", true)) {
      findings.push_back(
          {true,
           fmt::format("{} does not see what {} writes in {}: it is not the same folder", host,
                       workers[0]["host"].get<std::string>(),
                       worker["disk_folder"].get<std::string>()),
           "choose a --run on a file system that all hosts share"});
    }
  }
}

void find_on_disks(const json& workers, std::vector<Finding>& findings) {
  for (const json& worker : workers) {
    const std::string host = worker["host"];
    if (worker.contains("disk_error")) {
      findings.push_back({true,
                          fmt::format("{}: {}", host, worker["disk_error"].get<std::string>()),
                          "choose a --run that can be written, or change to a folder of yours"});
    } else if (worker.contains("disk_free_bytes") &&
               worker["disk_free_bytes"].get<int64_t>() < 2048 * kMiB) {
      findings.push_back({false,
                          fmt::format("{}: only {} are free in {}: a checkpoint of GPT-2 124M "
                                      "takes 1.4 GiB",
                                      host, size_text(worker["disk_free_bytes"]),
                                      worker["disk_folder"].get<std::string>()),
                          "make room, or put --run on another disk"});
    }
  }
}

}  // namespace

void examine_allocation(json& worker, MpiSession& session, const Job& job) {
  examine_links(worker, session);
  session.world().barrier();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  worker["clock_s"] = std::chrono::duration<double>(now).count();
  const fs::path folder = existing_folder(job.run);
  worker["disk_folder"] = folder.string();
  if (!job.run.empty()) examine_sharing(worker, session, folder);
  if (session.local_rank() == 0) {
    examine_disk(worker, folder, job.run);
    if (!job.data.empty()) examine_dataset(worker, job.data);
  }
}

void find_in_allocation(const json& workers, std::vector<Finding>& findings) {
  find_on_disks(workers, findings);
  find_in_data(workers, findings);
  find_clocks(workers, findings);
  find_bridges(workers, findings);
  find_slow_links(workers, findings);
  find_stragglers(workers, findings);
}

std::string interfaces_text(const json& worker) {
  std::vector<std::string> each;
  for (const json& interface : worker.value("interfaces", json::array())) {
    each.push_back(fmt::format("{} {}", interface["name"].get<std::string>(),
                               interface["address"].get<std::string>()));
  }
  const std::string told = worker.value("mpi_interfaces", "");
  return (each.empty() ? "none" : fmt::format("{}", fmt::join(each, ", "))) +
         (told.empty() ? "" : fmt::format("; MPI over {}", told));
}

std::string links_text(const json& workers) {
  const std::vector<Link> links = all_links(workers);
  if (links.empty()) return "";
  const LinkRate normal = usual(links);
  std::string text = fmt::format(
      "links{}\n", links.front().between_hosts() ? " between the hosts' first workers" : "");
  const auto end = [&](const Link& link, const json& worker) {
    return link.between_hosts() ? worker["host"].get<std::string>()
                                : fmt::format("worker {}", worker["rank"].get<int>());
  };
  size_t width = 12;
  for (const Link& link : links) {
    width = std::max({width, end(link, link.a).size(), end(link, link.b).size()});
  }
  text += fmt::format("  {:<{}}  {}\n", "median", 2 * width + 2, rate_text(normal));
  if (links.size() > kHostsShown * (kHostsShown - 1) / 2) {
    return text + "  (--json has all; slow ones are named below)\n";
  }
  for (const Link& link : links) {
    text += fmt::format("  {:<{}}  {:<{}}  {}{}\n", end(link, link.a), width, end(link, link.b),
                        width, rate_text(link.rate), is_slow(link, normal) ? "  slow" : "");
  }
  return text;
}

}  // namespace lockstep::launch
