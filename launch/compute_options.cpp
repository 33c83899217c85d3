#include "launch/compute_options.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "comm/agreement.h"
#include "comm/nccl_communicator.h"
#include "core/thread_pool.h"
#include "kernels/matmul.h"
#include "launch/machine.h"
#include "launch/worker_gpus.h"

namespace lockstep::launch {

void add_precision_option(OptionTable& table, PrecisionChoice& precision) {
  table.add("precision",
            choice(precision,
                   {{"auto", PrecisionChoice::automatic},
                    {"fp32", PrecisionChoice::fp32},
                    {"bf16", PrecisionChoice::bf16},
                    {"fp16", PrecisionChoice::fp16}},
                   "auto|fp32|bf16|fp16"),
            "of weights and activations; sums are fp32 (default auto: bf16 where the machine is "
            "fast at it, else fp32)");
}

void add_machine_options(OptionTable& table, MachineOptions& options) {
  table.add("device",
            choice(options.device,
                   {{"auto", DeviceChoice::automatic},
                    {"cpu", DeviceChoice::cpu},
                    {"cuda", DeviceChoice::cuda}},
                   "auto|cpu|cuda"),
            "where to compute (default auto: on GPUs where every worker has one)",
            InConfigFile::no);
  table.add("share-gpu", flag(options.share_gpu),
            "let several workers of a host compute on one GPU", InConfigFile::no);
  table.add("threads", integer(options.threads, 1, 4096),
            "threads a worker (default: the cores it may use, divided by the workers that share "
            "them)",
            InConfigFile::no);
}

void add_compute_options(OptionTable& table, ComputeOptions& options) {
  table.group("Numerics");
  add_precision_option(table, options.precision);
  table.group("Machine");
  add_machine_options(table, options.machine);
}

namespace {

void check_cuda() {
  if (!kCudaIsBuilt) {
    throw DeviceError("--device cuda: this build has no CUDA; leave it out or use --device cpu");
  }
  if (cuda_device_count() == 0) {
    throw DeviceError("--device cuda: CUDA finds no GPU here ({}); 'lockstep doctor' tells more",
                      has_nvidia_gpu()
                          ? "there is one: is its driver older than this program needs?"
                          : "no driver is loaded");
  }
}

}  // namespace

void check_device(const MachineOptions& options) {
  if (options.share_gpu && options.device == DeviceChoice::cpu) {
    throw UsageError("--share-gpu contradicts --device cpu; leave one of them out");
  }
  if (options.device == DeviceChoice::cuda) check_cuda();
}

namespace {

// Why not every worker computes on a GPU; empty where each has one.
std::string gpu_obstacle(MpiSession* session) {
  const int count = cuda_device_count();
  std::string mine = count > 0 ? "" : "not every worker has a GPU";
  for (int i = 0; i < count && mine.empty(); i++) mine = too_old(i);
  if (session == nullptr) return mine;
  for (const std::string& obstacle : said_by_all(session->world(), mine)) {
    if (!obstacle.empty()) return obstacle;
  }
  return "";
}

}  // namespace

Device start_device(const MachineOptions& options, MpiSession* session) {
  const Device device = planned_device(options.device, session);
  if (device == Device::cuda) {
    session == nullptr ? check_cuda() : run_together(session->world(), check_cuda);
    take_gpu(options.share_gpu, session);
  }
  if (session != nullptr) check_alike(device, *session);
  return device;
}

Device planned_device(DeviceChoice device, MpiSession* session) {
  if (device != DeviceChoice::automatic) {
    return device == DeviceChoice::cuda ? Device::cuda : Device::cpu;
  }
  const std::string obstacle = gpu_obstacle(session);
  if (!obstacle.empty() && cuda_device_count() > 0) {
    spdlog::info("--device auto is cpu: {}", obstacle);
  }
  return obstacle.empty() ? Device::cuda : Device::cpu;
}

std::unique_ptr<Communicator> device_communicator([[maybe_unused]] Device device,
                                                  [[maybe_unused]] Communicator& world,
                                                  [[maybe_unused]] double deadline_s) {
  if constexpr (kCudaIsBuilt) {
    if (device == Device::cuda) {
      if (world.size() > 1) use_nccl_memory();
      return nccl_communicator(world, deadline_s);
    }
  }
  return nullptr;
}

bool fast_bf16(Device device, MpiSession* session) {
  if (device == Device::cuda) return true;
  double fast = kernels::cpu::has_fast_product(DType::bf16) ? 1 : 0;
  if (session != nullptr) session->world().all_reduce(&fast, 1, ReduceOp::min);
  return fast == 1;
}

DType resolve_precision(PrecisionChoice precision, bool fast_bf16) {
  if (precision == PrecisionChoice::automatic) return fast_bf16 ? DType::bf16 : DType::fp32;
  if (precision == PrecisionChoice::fp32) return DType::fp32;
  return precision == PrecisionChoice::bf16 ? DType::bf16 : DType::fp16;
}

void start_threads(const std::optional<int>& threads, MpiSession* session) {
  const Machine machine = this_machine();
  if (session == nullptr) {
    const auto cores = static_cast<int>(machine.cores.size());
    const int quota = machine.quota >= 1 ? static_cast<int>(machine.quota) : cores;
    set_num_threads(threads.value_or(std::min(cores, quota)));
    return;
  }
  const CoreShare share = share_of_cores(machine, *session);
  set_num_threads(threads.value_or(share.threads));
  if (share.cores_of_workers < machine.cores_of_host && session->rank() == 0) {
    spdlog::warn(
        "the workers are bound to {} of this host's {} cores; 'mpirun --bind-to none' "
        "lets them use all",
        share.cores_of_workers, machine.cores_of_host);
  }
}

Compute start_compute(const ComputeOptions& options, MpiSession* session) {
  const Device device = start_device(options.machine, session);
  start_threads(options.machine.threads, session);
  return {device, resolve_precision(options.precision, fast_bf16(device, session))};
}

}  // namespace lockstep::launch
