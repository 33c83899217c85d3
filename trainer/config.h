#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "core/device.h"
#include "core/dtype.h"
#include "model/config.h"

namespace lockstep {

enum class Schedule { cosine, linear, constant, inverse_sqrt, wsd };
enum class OptimizerKind { adamw, adam };
// ordered: along one fixed tree, the same bits on any number of workers, each of which updates its
// shard. all_reduce: by the library, in its order; every worker updates everything.
enum class Reduce { ordered, all_reduce };

// As on the command line.
std::string_view name(Schedule schedule);
std::string_view name(OptimizerKind kind);
std::string_view name(Reduce reduce);

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::adamw;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
  double clip_norm = 1;   // 0: none
  double clip_value = 0;  // 0: none
};

struct ScheduleConfig {
  Schedule schedule = Schedule::cosine;
  double learning_rate = 6e-4;  // peak
  int64_t warmup_steps = 0;
  double min_lr_ratio = 0.1;  // the floor, as a share of the peak
};

// What `lockstep train` does, fully resolved: nothing here is "auto" except on request.
struct TrainConfig {
  std::filesystem::path data, run;
  bool fresh = false;
  std::filesystem::path initialize_from;  // empty: random weights
  int64_t steps = 0;
  uint64_t seed = 0;

  ModelConfig model;             // vocab_size from the dataset
  int64_t batch_size = 0;        // sequences a step, over all workers
  int64_t micro_batch_size = 0;  // sequences a forward pass
  int virtual_workers = 1;       // what the run is defined over; a multiple of the workers
  OptimizerConfig optimizer;
  ScheduleConfig schedule;

  Device device = Device::cpu;
  DType precision = DType::fp32;
  std::optional<double> loss_scale;  // none: dynamic where precision is fp16, else 1
  bool recompute = false;
  bool cuda_graph = true;  // capture the step, where the device is a GPU
  Reduce reduce = Reduce::ordered;
  DType gradient_dtype = DType::fp32;  // in which gradients travel: fp32 or bf16
  double collective_timeout_s = 600;   // the longest wait for other workers
  int64_t check_replicas = 0;          // steps between comparisons of the workers' weights; 0: none

  // When the last save must be done; none: no limit. The first worker's counts.
  std::optional<std::chrono::steady_clock::time_point> end_by;

  int64_t checkpoint_every = 0;  // 0: only at the end
  int keep = 0;                  // 0: all
  int64_t evaluate_every = 0;    // 0: only at the end
  int64_t log_every = 10;
  std::filesystem::path profile;  // the file for a trace of some steps; empty: no profile
  int64_t profile_steps = 3;
};

}  // namespace lockstep
