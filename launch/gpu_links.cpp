#include "launch/gpu_links.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "comm/agreement.h"
#include "comm/nccl_communicator.h"
#include "comm/nccl_rates.h"
#include "launch/text.h"

namespace lockstep::launch {
namespace {

using nlohmann::json;

struct Algorithm {
  const char *key, *nccl_name, *title;
};
constexpr Algorithm kAlgorithms[] = {
    {"choice", "", "NCCL's choice"}, {"ring", "Ring", "ring"}, {"tree", "Tree", "tree"}};

constexpr double kSlow = 0.5;        // of the best algorithm's rate
constexpr int64_t kLarge = 1 << 20;  // bytes; smaller messages are a matter of latency

double bus_rate(const json& rate) { return rate["bus_bytes_per_second"].get<double>(); }
int64_t size_of(const json& rate) { return rate["size_bytes"].get<int64_t>(); }
double in_gb(double rate) { return rate / 1e9; }

std::string failure_of(const json& measured) { return measured.value("failure", ""); }

// The best of all algorithms at each size.
std::map<int64_t, double> best_rates(const json& links) {
  std::map<int64_t, double> best;
  for (const json& measured : links["algorithms"]) {
    for (const json& rate : measured["rates"]) {
      double& fastest = best[size_of(rate)];
      fastest = std::max(fastest, bus_rate(rate));
    }
  }
  return best;
}

// Why not to measure; empty: all workers have a GPU of their own, and NCCL. `workers`, by rank:
// host, gpu (its id, or ""), obstacle (of NCCL).
std::string obstacle(const std::vector<json>& workers) {
  std::set<std::pair<std::string, std::string>> taken;
  for (size_t rank = 0; rank < workers.size(); rank++) {
    const json& worker = workers[rank];
    const std::string host = worker["host"], gpu = worker["gpu"], nccl = worker["obstacle"];
    if (gpu.empty()) return fmt::format("worker {} on {} has no GPU to use", rank, host);
    if (!taken.emplace(host, gpu).second) {
      return fmt::format("worker {} on {} has no GPU of its own", rank, host);
    }
    if (workers.size() > 1 && !nccl.empty()) return fmt::format("{}: {}", host, nccl);
  }
  return workers.size() == 1 ? "one worker alone; mpirun starts several" : "";
}

json measure(const char* algorithm, MpiSession& session) {
  const AllReduceRates found = measure_nccl_all_reduce(session, algorithm);
  json measured = {{"rates", json::array()}};
  for (const AllReduceRate& rate : found.rates) {
    measured["rates"].push_back({{"size_bytes", rate.size_bytes},
                                 {"seconds", rate.seconds},
                                 {"algorithm_bytes_per_second", rate.algorithm_bytes_per_second},
                                 {"bus_bytes_per_second", rate.bus_bytes_per_second}});
  }
  if (!found.failure.empty()) measured["failure"] = found.failure;
  return measured;
}

// NCCL's choice against what it could have chosen, by the size where it loses most.
void find_bad_choice(const json& links, std::vector<Finding>& findings) {
  const std::map<int64_t, double> best = best_rates(links);
  double worst = kSlow;
  std::string what;
  for (const json& rate : links["algorithms"]["choice"]["rates"]) {
    const double fastest = best.at(size_of(rate));
    if (size_of(rate) < kLarge || bus_rate(rate) >= worst * fastest) continue;
    worst = bus_rate(rate) / fastest;
    what = fmt::format(
        "NCCL's all-reduce of {} is slow as it chooses the algorithm: {:.3g} GB/s bus "
        "bandwidth, where another reaches {:.3g}",
        size_text(size_of(rate)), in_gb(bus_rate(rate)), in_gb(fastest));
  }
  if (!what.empty()) {
    findings.push_back({false, what,
                        "export NCCL_ALGO=Ring or Tree, whichever is faster above; and see whether "
                        "NCCL_ALGO or NCCL_PROTO is set already"});
  }
}

void find_slow_network(const json& links, std::vector<Finding>& findings) {
  const std::map<int64_t, double> best = best_rates(links);
  if (best.empty()) return;
  const auto [size, rate] = *best.rbegin();
  // One that ends with a small size was too slow to go on.
  if (rate >= kSlowNetwork) return;
  findings.push_back(
      {false,
       fmt::format("NCCL's all-reduce between the GPUs is slow: {:.3g} GB/s bus bandwidth at {}",
                   in_gb(rate), size_text(size)),
       "NCCL_DEBUG=INFO says by which network it goes; NCCL_SOCKET_IFNAME and NCCL_IB_HCA choose"});
}

}  // namespace

json examine_gpu_links([[maybe_unused]] const json& cuda, [[maybe_unused]] MpiSession& session) {
  json links;
  if constexpr (kCudaIsBuilt) {
    const auto index = cuda["gpu"].get<int>();
    const json mine = {
        {"host", session.host()},
        {"gpu", index < 0 ? json("") : cuda["gpus"][static_cast<size_t>(index)]["id"]},
        {"obstacle", cuda["nccl"]["obstacle"]}};
    std::vector<json> workers;
    for (const std::string& text : said_by_all(session.world(), mine.dump())) {
      workers.push_back(json::parse(text));
    }
    if (std::all_of(workers.begin(), workers.end(),
                    [](const json& worker) { return worker["gpu"] == ""; })) {
      return links;
    }
    links["workers"] = workers.size();
    if (const std::string why = obstacle(workers); !why.empty()) {
      links["obstacle"] = why;
      return links;
    }
    for (const Algorithm& algorithm : kAlgorithms) {
      json& measured = links["algorithms"][algorithm.key];
      measured = measure(algorithm.nccl_name, session);
      // What training uses does not work: the others would but wait for the same.
      if (*algorithm.nccl_name == '\0' && !failure_of(measured).empty()) break;
    }
  }
  return links;
}

void find_in_gpu_links(const json& links, std::vector<Finding>& findings) {
  if (links.is_null() || links.contains("obstacle")) return;  // which the GPUs' findings have
  for (const Algorithm& algorithm : kAlgorithms) {
    const std::string failure =
        failure_of(links["algorithms"].value(algorithm.key, json::object()));
    if (failure.empty()) continue;
    if (*algorithm.nccl_name == '\0') {
      findings.push_back(
          {true, fmt::format("NCCL does not work between the GPUs: {}", failure),
           "NCCL_DEBUG=INFO tells more; NCCL_SOCKET_IFNAME=NAME chooses the network"});
      return;
    }
    findings.push_back(
        {false, fmt::format("NCCL's all-reduce by {} does not work: {}", algorithm.title, failure),
         fmt::format("training works as long as NCCL_ALGO is not {}", algorithm.nccl_name)});
  }
  find_bad_choice(links, findings);
  find_slow_network(links, findings);
}

std::string gpu_links_text(const json& links) {
  if (links.is_null()) return "";
  if (links.contains("obstacle")) {
    return fmt::format("NCCL's all-reduce\n  {:<14}{}\n", "not measured",
                       links["obstacle"].get<std::string>());
  }
  const auto workers = links["workers"].get<int>();
  std::string titles, units;
  std::map<int64_t, std::string> lines;  // by size
  size_t column = 0;                     // where an algorithm's begins
  for (const Algorithm& algorithm : kAlgorithms) {
    const json measured = links["algorithms"].value(algorithm.key, json::object());
    if (measured.empty()) continue;
    titles += fmt::format("{:<30}", algorithm.title);
    units += fmt::format("{:<12}{:<9}{:<9}", "us", "algbw", "busbw");
    for (const json& rate : measured["rates"]) {
      std::string& line = lines[size_of(rate)];
      line.resize(column, ' ');
      line += fmt::format("{:<12.1f}{:<9.2f}{:<9.2f}", rate["seconds"].get<double>() * 1e6,
                          in_gb(rate["algorithm_bytes_per_second"]), in_gb(bus_rate(rate)));
    }
    column = titles.size();
  }
  std::string text = fmt::format("NCCL's all-reduce over {} GPUs, rates in GB/s\n", workers);
  const auto add = [&](const std::string& name, const std::string& line) {
    text += fmt::format("  {:<14}{}", name, line);
    text.resize(text.find_last_not_of(' ') + 1);
    text += '\n';
  };
  add("", titles);
  add("", units);
  for (const auto& [size, line] : lines) add(size_text(size), line);
  return text;
}

}  // namespace lockstep::launch
