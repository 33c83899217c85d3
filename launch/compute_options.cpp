#include "launch/compute_options.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "core/thread_pool.h"
#include "kernels/matmul.h"
#include "launch/machine.h"

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

void add_device_options(OptionTable& table, DeviceChoice& device, std::optional<int>& threads) {
  table.add("device",
            choice(device,
                   {{"auto", DeviceChoice::automatic},
                    {"cpu", DeviceChoice::cpu},
                    {"cuda", DeviceChoice::cuda}},
                   "auto|cpu|cuda"),
            "where to compute (default auto)", InConfigFile::no);
  table.add("threads", integer(threads, 1, 4096),
            "threads a worker (default: the cores it may use, divided by the workers that share "
            "them)",
            InConfigFile::no);
}

void add_compute_options(OptionTable& table, ComputeOptions& options) {
  table.group("Numerics");
  add_precision_option(table, options.precision);
  table.group("Machine");
  add_device_options(table, options.device, options.threads);
}

void check_device(DeviceChoice device) {
  if (device == DeviceChoice::cuda) {
    throw DeviceError("--device cuda: this build has no CUDA; leave it out or use --device cpu");
  }
}

bool fast_bf16(MpiSession* session) {
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

DType start_compute(const ComputeOptions& options, MpiSession* session) {
  check_device(options.device);
  start_threads(options.threads, session);
  return resolve_precision(options.precision, fast_bf16(session));
}

}  // namespace lockstep::launch
