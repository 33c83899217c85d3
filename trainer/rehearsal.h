#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/rehearsal.h"
#include "trainer/config.h"
#include "trainer/training.h"

// What a training will need and how fast it will be, from the code that trains, in a Rehearsal: on
// any machine, with nothing allocated or run.
namespace lockstep {

// What worker `rank` of `workers` will hold on its device.
Training::Memory planned_memory(const TrainConfig& config, int rank, int workers);

// The most sequences of a forward pass with which a worker needs no more than that; 0: one is too
// many. `plan` is what it needs with config.micro_batch_size.
int64_t largest_micro_batch(const TrainConfig& config, const Training::Memory& plan,
                            int64_t memory_bytes);

// What a GPU can do, as its maker's data sheets say: NVIDIA's of the A100 (80 GB, SXM), H100 (SXM5)
// and H200 (SXM), with products dense (the sheets print twice as much, for sparse operands) and
// half of NVLink's total as one way.
struct GpuLimits {
  std::string_view name;   // "h100"
  std::string_view title;  // "H100 SXM"
  double memory_rate;      // bytes/s
  double tensor_rate;      // FLOP/s of bf16 and fp16 products, dense
  double vector_rate;      // FLOP/s of fp32
  double link_rate;        // bytes/s to other GPUs of the machine, one way
};
const std::vector<GpuLimits>& known_gpus();

// What share of those limits well-made kernels reach. Assumed, none measured here: what is commonly
// reported of large products, of copies of large arrays, and of large messages over NVLink.
struct Efficiency {
  double tensor = 0.7, vector = 0.5, memory = 0.85, link = 0.8;
  double launch_s = 2e-6;  // of the device's time, that each piece of work costs beside its own
};

struct Prediction {
  // All calls of one name.
  struct Row {
    std::string_view name;
    int64_t calls = 0;
    double bytes = 0, flops = 0, seconds = 0;
    // Of the time, what memory (or a link) sets rather than arithmetic, and launches.
    double transfer_s = 0, launch_s = 0;
  };
  std::vector<Row> rows;  // the longest first
  double step_s = 0;
  double tokens_per_second = 0;  // of all workers
  double peak_share = 0;         // by training_flops_per_token and the GPU's tensor_rate
};

// The time of what is noted from entry `first` on. Each piece of work takes the longer of what its
// bytes and its FLOPs take; a stream's follow each other, and streams run beside each other, as if
// they took nothing from one another, but for their waits. Gives rows and step_s.
Prediction predicted_time(const WorkLog& log, size_t first, const GpuLimits& gpu,
                          const Efficiency& efficiency = {});

// Of one step of worker 0 of `workers`. config.device is cuda; needs a build with CUDA.
Prediction predicted_step(const TrainConfig& config, int workers, const GpuLimits& gpu,
                          const Efficiency& efficiency = {});

}  // namespace lockstep
