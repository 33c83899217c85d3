#pragma once
#include <optional>

#include "comm/mpi_session.h"
#include "core/dtype.h"
#include "launch/options.h"

// Where and how to compute: the options that generate, evaluate and train share.
namespace lockstep::launch {

enum class DeviceChoice { automatic, cpu, cuda };
enum class PrecisionChoice { automatic, fp32, bf16, fp16 };

struct ComputeOptions {
  PrecisionChoice precision = PrecisionChoice::automatic;
  DeviceChoice device = DeviceChoice::automatic;
  std::optional<int> threads;
};

void add_precision_option(OptionTable& table, PrecisionChoice& precision);
void add_device_options(OptionTable& table, DeviceChoice& device, std::optional<int>& threads);
// Both, under captions of their own.
void add_compute_options(OptionTable& table, ComputeOptions& options);

// Throws DeviceError when the device is not there.
void check_device(DeviceChoice device);

// auto: bf16 where every worker's machine multiplies it faster than fp32, else fp32. Collective
// where there is a session.
bool fast_bf16(MpiSession* session);
DType resolve_precision(PrecisionChoice precision, bool fast_bf16);

// Sets this worker's number of threads: as given, or its share of the cores. Collective where there
// is a session.
void start_threads(const std::optional<int>& threads, MpiSession* session);

// check_device, start_threads and resolve_precision.
DType start_compute(const ComputeOptions& options, MpiSession* session);

}  // namespace lockstep::launch
