#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "launch/compute_options.h"
#include "launch/options.h"
#include "trainer/config.h"

namespace lockstep::launch {

// What may be said to `lockstep train`. Empty: not said, filled in by resolve_train.
struct TrainOptions {
  std::filesystem::path config, data, run, initialize_from, stage;
  bool fresh = false, dry_run = false;
  std::string predict;  // of known_gpus(); empty: nothing
  int64_t steps = 1000;
  uint64_t seed = 0;

  std::string preset;
  std::optional<Family> family;
  std::optional<int64_t> layers, heads, kv_heads, hidden_size, ffn_size, context_length;
  std::optional<kernels::Activation> activation;
  double dropout = 0;

  std::optional<int64_t> batch_size, micro_batch_size;
  std::optional<int> virtual_workers;
  OptimizerConfig optimizer;
  std::optional<double> learning_rate;
  Schedule schedule = Schedule::cosine;
  std::optional<int64_t> warmup_steps;
  double min_lr_ratio = 0.1;

  PrecisionChoice precision = PrecisionChoice::automatic;
  std::string loss_scale = "dynamic";
  bool deterministic = true;
  std::optional<Reduce> reduce;
  std::optional<DType> gradient_dtype;
  int64_t check_replicas = 0;
  double collective_timeout_s = 600;
  std::string time_limit;  // of to_duration, or none; empty: what the batch system says
  bool recompute = false;
  bool cuda_graph = true;

  MachineOptions machine;

  std::optional<int64_t> checkpoint_every, evaluate_every;
  int64_t log_every = 10;
  int keep = 3;
  std::filesystem::path profile;
  int64_t profile_steps = 3;
};

// The options bound to `options`, which must outlive the table.
OptionTable train_table(TrainOptions& options);

// Which options of RUN/run.cfg a resumed run leaves alone, because another that was given says the
// same in other words: a preset against sizes.
bool superseded(const OptionTable& given, const std::string& name);

// What the resolution depends on beside the options.
struct Surroundings {
  int64_t vocab_size = 0;
  int workers = 1;
  bool fast_bf16 = false;
  // The architecture of the checkpoint that weights come from (--initialize-from, or a resumed run
  // that began so); none: by the options.
  std::optional<ModelConfig> weights;
};

// Fills in what was not said, in `options` too (for run.cfg). Throws UsageError on contradictions.
TrainConfig resolve_train(TrainOptions& options, const OptionTable& table,
                          const Surroundings& surroundings);

}  // namespace lockstep::launch
