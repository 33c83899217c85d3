#include "launch/gpus.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "comm/nccl_communicator.h"
#include "core/device.h"
#include "kernels/cudnn_attention.h"
#include "kernels/machine.h"
#include "launch/text.h"
#include "launch/worker_gpus.h"

namespace lockstep::launch {
namespace {

using nlohmann::json;

json to_json(const LibraryVersion& version) {
  return {{"built", version.built}, {"loaded", version.loaded}};
}

int version_of(const json& cuda, const char* key) { return cuda[key].get<int>(); }
int major_of(int version) { return version / 1000; }

// Also a minor version apart, a driver serves only what was compiled for its GPUs.
void find_in_driver(const std::string& host, const json& cuda, bool has_gpu,
                    std::vector<Finding>& findings) {
  const int driver = version_of(cuda, "driver"), runtime = version_of(cuda, "runtime");
  if (driver == 0) {
    findings.push_back({false,
                        fmt::format("{}: no NVIDIA driver is loaded{}: it computes on its CPUs",
                                    host, has_gpu ? ", though there is a GPU" : ""),
                        "install the driver, or in a container: docker run --gpus all"});
  } else if (driver < runtime) {
    const bool fatal = major_of(driver) < major_of(runtime);
    findings.push_back(
        {fatal,
         fmt::format("{}: the driver serves CUDA {}, which is older than the runtime's {}{}", host,
                     cuda_version_text(driver), cuda_version_text(runtime),
                     fatal ? "" : ": only code compiled for its GPUs will run"),
         fmt::format("update the driver, or build with the CUDA toolkit {}",
                     cuda_version_text(driver))});
  } else if (cuda["gpus"].empty()) {
    findings.push_back(
        {false,
         fmt::format("{}: the driver is loaded, but CUDA sees no GPU: it computes on its CPUs",
                     host),
         "nvidia-smi lists them; CUDA_VISIBLE_DEVICES and the batch system's --gres hide them"});
  }
}

void find_in_libraries(const std::string& host, const json& cuda, bool several,
                       std::vector<Finding>& findings) {
  const auto numbers = [](const std::string& version) {
    std::array<int, 3> parts{};
    std::sscanf(version.c_str(), "%d.%d.%d", &parts[0], &parts[1], &parts[2]);
    return parts;
  };
  for (const auto& [key, library] : {std::pair{"cublaslt", "cuBLASLt"}, {"nccl", "NCCL"}}) {
    const std::string built = cuda[key]["built"], loaded = cuda[key]["loaded"];
    const std::string obstacle = cuda[key].value("obstacle", "");
    if (!obstacle.empty()) {
      findings.push_back({several && !cuda["gpus"].empty(),
                          fmt::format("{}: several workers cannot use GPUs: {}", host, obstacle),
                          "name the folder of its library first in LD_LIBRARY_PATH"});
      continue;
    }
    if (!loaded.empty() && numbers(loaded) >= numbers(built)) continue;
    findings.push_back(
        {false,
         fmt::format("{}: {} {} is loaded, older than {}, which this program was built with", host,
                     library, loaded.empty() ? "of an unknown version" : loaded, built),
         "name the folder of the newer one first in LD_LIBRARY_PATH, or build with this one"});
  }
}

void find_in_cudnn(const std::string& host, const json& cuda, std::vector<Finding>& findings) {
  const std::string obstacle = cuda["cudnn"]["obstacle"];
  if (obstacle.empty() || cuda["gpus"].empty()) return;
  findings.push_back(
      {false,
       fmt::format("{}: attention is by our own kernels, which are several times slower than "
                   "cuDNN's: {}",
                   host, obstacle),
       "install cuDNN 9 and build again where it was not there, or name the folder of its "
       "libraries first in LD_LIBRARY_PATH"});
}

// That the workers of a host see, each once.
std::vector<json> gpus_of(const std::vector<json>& workers) {
  std::vector<json> gpus;
  for (const json& worker : workers) {
    for (const json& gpu : worker["cuda"]["gpus"]) {
      const auto same = [&](const json& other) { return other["id"] == gpu["id"]; };
      if (std::none_of(gpus.begin(), gpus.end(), same)) gpus.push_back(gpu);
    }
  }
  return gpus;
}

// GPT-2 124M's, which stands for all that cuDNN computes: its plans are made, if there is a GPU.
json examine_cudnn(bool usable) {
  const kernels::cuda::AttentionShape shape{DType::bf16, 8, 1024, {12, 12, 64}};
  std::string name;  // "cuDNN 9.19.0"
  std::string obstacle = kernels::cuda::cudnn_obstacle(&name);
  if (usable && obstacle.empty()) obstacle = kernels::cuda::cudnn_attention_obstacle(shape);
  return {{"version", name.substr(name.find(' ') + 1)}, {"obstacle", obstacle}};
}

}  // namespace

std::string cuda_version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version / 10 % 100);
}

json examine_gpus([[maybe_unused]] MpiSession& session) {
  json cuda = {{"built", kCudaIsBuilt}, {"gpus", json::array()}, {"gpu", -1}};
  if constexpr (kCudaIsBuilt) {
    const CudaVersions versions = cuda_versions();
    cuda["driver"] = versions.driver;
    cuda["runtime"] = versions.runtime;
    cuda["runtime_built"] = versions.runtime_built;
    cuda["cublaslt"] = to_json(kernels::cublaslt_version());
    cuda["nccl"] = to_json(nccl_version());
    cuda["nccl"]["obstacle"] = nccl_obstacle();
    const int count = cuda_device_count();
    for (int i = 0; i < count; i++) {
      const Gpu gpu = this_gpu(i);
      cuda["gpus"].push_back({{"id", gpu.id},
                              {"name", gpu.name},
                              {"architecture", gpu.architecture},
                              {"memory_bytes", gpu.memory_bytes}});
    }
    const int mine = choose_gpu(&session).index;
    const bool usable = mine >= 0 && this_gpu(mine).architecture >= kOldestArchitecture;
    if (usable) set_cuda_device(mine);
    cuda["cudnn"] = examine_cudnn(usable);
    for (const auto& [key, dtype] :
         {std::pair{"fp32_flops", DType::fp32}, {"bf16_flops", DType::bf16}}) {
      session.world().barrier();
      if (usable) cuda[key] = kernels::measured_product_rate(dtype, Device::cuda);
    }
    if (usable) cuda["gpu"] = mine;
  }
  return cuda;
}

bool all_have_gpus(const json& workers) {
  return std::all_of(workers.begin(), workers.end(),
                     [](const json& worker) { return worker["cuda"]["gpu"].get<int>() >= 0; });
}

void print_gpus(const std::vector<json>& workers) {
  const json& cuda = workers.front()["cuda"];
  const bool has_gpu = workers.front()["gpu"].get<bool>();
  const auto line = [](const std::string& name, const std::string& text) {
    fmt::print("  {:<14}{}\n", name, text);
  };
  if (!cuda["built"].get<bool>()) {
    line("GPU",
         has_gpu ? "there is one, but this build has no CUDA" : "none; this build has no CUDA");
    return;
  }
  const int driver = version_of(cuda, "driver");
  std::vector<json> gpus = gpus_of(workers);
  if (gpus.empty())
    line("GPU", driver == 0 ? "none: no driver is loaded" : "none that CUDA can use");
  for (json& gpu : gpus) gpu.erase("id");
  // Those alike that follow each other in one line.
  for (auto gpu = gpus.begin(); gpu != gpus.end();) {
    const auto next =
        std::find_if(gpu, gpus.end(), [&](const json& other) { return other != *gpu; });
    const auto count = next - gpu;
    line(count == 1 ? "GPU" : "GPUs",
         fmt::format("{}{}, architecture {}, {}", count == 1 ? "" : fmt::format("{} x ", count),
                     (*gpu)["name"].get<std::string>(), architecture_text((*gpu)["architecture"]),
                     size_text((*gpu)["memory_bytes"])));
    gpu = next;
  }
  if (driver != 0) line("driver", fmt::format("for CUDA up to {}", cuda_version_text(driver)));
}

void find_in_gpus(const std::string& host, const std::vector<json>& workers,
                  std::vector<Finding>& findings) {
  const json& cuda = workers.front()["cuda"];
  const bool has_gpu = workers.front()["gpu"].get<bool>();
  if (!cuda["built"].get<bool>()) {
    if (has_gpu) {
      findings.push_back(
          {false, fmt::format("{}: it has an NVIDIA GPU that this build cannot use", host),
           "install the CUDA toolkit and NCCL, and build again with -DLOCKSTEP_CUDA=ON"});
    }
    return;
  }
  find_in_driver(host, cuda, has_gpu, findings);
  find_in_libraries(host, cuda, workers.size() > 1, findings);
  find_in_cudnn(host, cuda, findings);
  const std::vector<json> gpus = gpus_of(workers);
  const auto count = static_cast<int>(gpus.size());
  const auto here = static_cast<int>(workers.size());
  if (count > 0 && here > count) {
    findings.push_back(
        {true,
         fmt::format("{}: {} workers, but {} GPU{}", host, here, count, count == 1 ? "" : "s"),
         fmt::format("start {} a host, or train with --share-gpu: it works, but "
                     "they wait for each other",
                     count)});
  }
  for (int i = 0; i < count; i++) {
    const json& gpu = gpus[static_cast<size_t>(i)];
    const auto architecture = gpu["architecture"].get<int>();
    if (architecture >= kOldestArchitecture) continue;
    findings.push_back(
        {true,
         fmt::format("{}: GPU {} ({}) is of architecture {}; {} or newer is needed", host, i,
                     gpu["name"].get<std::string>(), architecture_text(architecture),
                     architecture_text(kOldestArchitecture)),
         "hide it by CUDA_VISIBLE_DEVICES, or use --device cpu"});
  }
}

}  // namespace lockstep::launch
