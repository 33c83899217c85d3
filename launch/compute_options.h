#pragma once
#include <optional>

#include "comm/mpi_session.h"
#include "core/dtype.h"
#include "launch/options.h"

// Where and how to compute: the options that generate, evaluate and train share.
namespace lockstep::launch {

enum class DeviceChoice { automatic, cpu, cuda };
enum class PrecisionChoice { automatic, fp32, bf16, fp16 };

struct MachineOptions {
  DeviceChoice device = DeviceChoice::automatic;
  bool share_gpu = false;  // several workers on one
  std::optional<int> threads;
};

struct ComputeOptions {
  PrecisionChoice precision = PrecisionChoice::automatic;
  MachineOptions machine;
};

void add_precision_option(OptionTable& table, PrecisionChoice& precision);
void add_machine_options(OptionTable& table, MachineOptions& options);
// Both, under captions of their own.
void add_compute_options(OptionTable& table, ComputeOptions& options);

// Throws DeviceError when the device is not there, at once: before anything is read; UsageError
// when GPUs are to be shared on a CPU.
void check_device(const MachineOptions& options);

// What carries the tensors of a GPU between the workers; none for the CPU, where `world` does. Must
// not outlive it. Collective.
std::unique_ptr<Communicator> device_communicator(Device device, Communicator& world,
                                                  double deadline_s = 600);

// The device to compute on (auto: GPUs where every worker has one), which is made ready: each
// worker takes a GPU (worker_gpus.h). Throws DeviceError when there are fewer, unless they may be
// shared, when one is too old, and when the workers are not alike. Collective where there is a
// session.
Device start_device(const MachineOptions& options, MpiSession* session);

// The same device, for a run that is only planned: nothing is made ready, and GPUs that are asked
// for need not be there. Collective where there is a session.
Device planned_device(DeviceChoice device, MpiSession* session);

// auto: bf16 where every worker multiplies it faster than fp32, else fp32. Collective where there
// is a session.
bool fast_bf16(Device device, MpiSession* session);
DType resolve_precision(PrecisionChoice precision, bool fast_bf16);

// Sets this worker's number of threads: as given, or its share of the cores. Collective where there
// is a session.
void start_threads(const std::optional<int>& threads, MpiSession* session);

// start_device, start_threads and resolve_precision.
struct Compute {
  Device device;
  DType precision;
};
Compute start_compute(const ComputeOptions& options, MpiSession* session);

}  // namespace lockstep::launch
