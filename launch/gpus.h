#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/mpi_session.h"
#include "launch/findings.h"

// What doctor says about CUDA: the GPUs of a host, the driver, and the libraries.
namespace lockstep::launch {

// This worker's part of the report:
//   built            whether this program was built with CUDA; without, there is nothing more
//   driver, runtime, runtime_built   as CudaVersions (core/device.h)
//   cublaslt, nccl   {built, loaded}, as LibraryVersion; and of NCCL `obstacle`, why it is of no
//                    use, or ""
//   cudnn            {version, obstacle}: "9.19.0", and why attention is not by it, or ""
//   gpus             all that this process sees: {id, name, architecture, memory_bytes}
//   gpu              which of them this worker computes on (worker_gpus.h); -1: none
//   bf16_flops, fp32_flops   matrix products of that GPU, shared by the workers that share it
// Measures where there is a GPU to use. Collective.
nlohmann::json examine_gpus(MpiSession& session);

// Whether every worker has a GPU to compute on, as --device auto decides.
bool all_have_gpus(const nlohmann::json& workers);

// The lines of one host; `workers` are its own.
void print_gpus(const std::vector<nlohmann::json>& workers);

// What is wrong with CUDA on one host; `workers` are those of the host.
void find_in_gpus(const std::string& host, const std::vector<nlohmann::json>& workers,
                  std::vector<Finding>& findings);

// 13000 is "13.0".
std::string cuda_version_text(int version);

}  // namespace lockstep::launch
