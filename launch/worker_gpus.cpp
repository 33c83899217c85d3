#include "launch/worker_gpus.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "comm/agreement.h"
#include "comm/nccl_communicator.h"
#include "core/text.h"
#include "kernels/cudnn_attention.h"
#include "kernels/machine.h"
#include "launch/gpus.h"
#include "launch/machine.h"

namespace lockstep::launch {
namespace {

using nlohmann::json;

// Of one worker, and of all that it can meet.
struct Place {
  int rank = 0;
  std::vector<std::string> hosts;  // by rank
  std::vector<std::vector<std::string>> seen;
  std::vector<GpuChoice> dealt;
};

Place find_place(MpiSession* session) {
  std::vector<std::string> ids;
  for (int i = 0; i < cuda_device_count(); i++) ids.push_back(this_gpu(i).id);
  if (session == nullptr) return {0, {""}, {ids}, deal_gpus({ids})};
  Place place{session->rank(), {}, {}, {}};
  const json mine = {{"host", session->host()}, {"ids", ids}};
  for (const std::string& text : said_by_all(session->world(), mine.dump())) {
    const json worker = json::parse(text);
    place.hosts.push_back(worker["host"]);
    place.seen.push_back(worker["ids"]);
  }
  place.dealt = deal_gpus(place.seen);
  return place;
}

void check_own(const Place& place) {
  const auto rank = static_cast<size_t>(place.rank);
  if (place.dealt[rank].sharers == 1) return;
  int workers = 0;
  std::set<std::string> gpus;
  for (size_t r = 0; r < place.hosts.size(); r++) {
    if (place.hosts[r] != place.hosts[rank]) continue;
    workers++;
    gpus.insert(place.seen[r].begin(), place.seen[r].end());
  }
  throw DeviceError(
      "{} of {} for {}, so that {} would share one\n"
      "start one worker a GPU (CUDA_VISIBLE_DEVICES may hide some), or add --share-gpu",
      plural(workers, "worker"), place.hosts[rank],
      plural(static_cast<int64_t>(gpus.size()), "GPU"), place.dealt[rank].sharers);
}

}  // namespace

std::string architecture_text(int architecture) {
  return fmt::format("{}.{}", architecture / 10, architecture % 10);
}

std::string too_old(int gpu) {
  const Gpu found = this_gpu(gpu);
  if (found.architecture >= kOldestArchitecture) return "";
  return fmt::format("GPU {} ({}) is of architecture {}; {} or newer is needed", gpu, found.name,
                     architecture_text(found.architecture), architecture_text(kOldestArchitecture));
}

std::vector<GpuChoice> deal_gpus(const std::vector<std::vector<std::string>>& seen) {
  std::map<std::string, int> taken;
  std::vector<GpuChoice> dealt(seen.size());
  for (size_t r = 0; r < seen.size(); r++) {
    const auto least = std::min_element(
        seen[r].begin(), seen[r].end(),
        [&](const auto& one, const auto& other) { return taken[one] < taken[other]; });
    if (least == seen[r].end()) continue;
    dealt[r].index = static_cast<int>(least - seen[r].begin());
    taken[*least]++;
  }
  for (size_t r = 0; r < seen.size(); r++) {
    if (dealt[r].index < 0) continue;
    dealt[r].sharers = taken[seen[r][static_cast<size_t>(dealt[r].index)]];
  }
  return dealt;
}

GpuChoice choose_gpu(MpiSession* session) {
  const Place place = find_place(session);
  return place.dealt[static_cast<size_t>(place.rank)];
}

void take_gpu(bool share, MpiSession* session) {
  const Place place = find_place(session);
  const GpuChoice mine = place.dealt[static_cast<size_t>(place.rank)];
  const auto take = [&] {
    if (!share) check_own(place);
    if (const std::string what = too_old(mine.index); !what.empty()) {
      throw DeviceError("{}\nhide it by CUDA_VISIBLE_DEVICES, or use --device cpu", what);
    }
    if constexpr (kCudaIsBuilt) {
      const std::string obstacle =
          session == nullptr || session->size() == 1 ? "" : nccl_obstacle();
      if (!obstacle.empty()) {
        throw DeviceError(
            "{}\nseveral workers on GPUs need it: name its folder first in LD_LIBRARY_PATH",
            obstacle);
      }
    }
    set_cuda_device(mine.index);
  };
  if (session == nullptr) return take();
  run_together(session->world(), take);
  if constexpr (kCudaIsBuilt) {
    if (mine.sharers > 1) let_workers_share_gpus(place.rank);
  }
}

std::vector<Trait> traits(Device device) {
  std::vector<Trait> all{{"lockstep", fmt::format("{}, build {}", LOCKSTEP_VERSION, build_id())}};
  if (device == Device::cpu) {
    all.push_back({"products", kernels::product_library()});
    return all;
  }
  if constexpr (kCudaIsBuilt) {
    const Gpu gpu = this_gpu(cuda_device());
    const CudaVersions cuda = cuda_versions();
    std::string cudnn;
    const std::string obstacle = kernels::cuda::cudnn_obstacle(&cudnn);
    all.push_back({"GPU", fmt::format("{}, architecture {}, {} multiprocessors", gpu.name,
                                      architecture_text(gpu.architecture), gpu.multiprocessors)});
    // Which compiles what was not compiled for the GPU.
    all.push_back({"driver", fmt::format("for CUDA {}", cuda_version_text(cuda.driver))});
    all.push_back({"CUDA runtime", cuda_version_text(cuda.runtime)});
    all.push_back({"cuBLASLt", kernels::cublaslt_version().loaded});
    all.push_back({"cuDNN", obstacle.empty() ? cudnn : obstacle});
    all.push_back({"NCCL", nccl_version().loaded});
  }
  return all;
}

json to_json(const std::vector<Trait>& traits) {
  json all = json::array();
  for (const Trait& trait : traits) all.push_back({trait.what, trait.value});
  return all;
}

std::vector<Trait> traits_from_json(const json& traits) {
  std::vector<Trait> all;
  for (const json& trait : traits) all.push_back({trait[0], trait[1]});
  return all;
}

std::string difference(const std::vector<std::vector<Trait>>& workers,
                       const std::vector<std::string>& hosts) {
  for (size_t r = 1; r < workers.size(); r++) {
    for (const Trait& other : workers[r]) {
      for (const Trait& first : workers.front()) {
        if (first.what != other.what || first.value == other.value) continue;
        return fmt::format(
            "the workers differ, and so would their bits: {} is {} for worker 0 on {}, but {} for "
            "worker {} on {}\n"
            "start the same program with the same libraries on machines of one kind",
            first.what, first.value, hosts.front(), other.value, r, hosts[r]);
      }
    }
  }
  return "";
}

void check_alike(Device device, MpiSession& session) {
  if (session.size() == 1) return;
  const json mine = {{"host", session.host()}, {"traits", to_json(traits(device))}};
  std::vector<std::vector<Trait>> workers;
  std::vector<std::string> hosts;
  for (const std::string& text : said_by_all(session.world(), mine.dump())) {
    const json worker = json::parse(text);
    hosts.push_back(worker["host"]);
    workers.push_back(traits_from_json(worker["traits"]));
  }
  if (const std::string what = difference(workers, hosts); !what.empty()) {
    throw SharedError(ExitCode::device, what);
  }
}

}  // namespace lockstep::launch
