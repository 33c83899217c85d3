#include <spdlog/spdlog.h>

#include <thread>

#include "checkpoints/checkpoint.h"
#include "comm/agreement.h"
#include "core/file.h"
#include "data/dataset.h"
#include "kernels/cudnn_attention.h"
#include "kernels/matmul.h"
#include "launch/command.h"
#include "launch/dry_run.h"
#include "launch/machine.h"
#include "launch/memory_check.h"
#include "launch/same_tokenizer.h"
#include "launch/shared_run.h"
#include "launch/staging.h"
#include "launch/text.h"
#include "launch/time_limit.h"
#include "launch/train_options.h"
#include "trainer/progress.h"
#include "trainer/run_lease.h"
#include "trainer/run_status.h"
#include "trainer/trainer.h"
#include "trainer/training.h"

namespace lockstep::launch {
namespace {

std::filesystem::path options_of(const std::filesystem::path& run) { return run / "run.cfg"; }

// So that run.cfg means the same from another folder.
void make_absolute(std::filesystem::path& path) {
  if (!path.empty()) path = std::filesystem::absolute(path).lexically_normal();
}

// Command line, --config, and what an earlier start of the run left in run.cfg: in this order. A
// run without a checkpoint starts anew, from its run.cfg only when nothing else names the data. A
// dry run may be of no run folder.
void read_options(TrainOptions& options, OptionTable& table, const Arguments& arguments,
                  bool first) {
  table.parse(arguments);
  if (!options.config.empty()) table.read_file(options.config);
  if (!options.predict.empty() && !options.dry_run) {
    throw UsageError("{} is of use with --dry-run only; add it", table.origin("predict"));
  }
  if (table.given("profile-steps") && options.profile.empty()) {
    throw UsageError("{} is of use with --profile FILE only; add it",
                     table.origin("profile-steps"));
  }
  if (options.dry_run && !options.profile.empty()) {
    throw UsageError("--dry-run takes no step that --profile could show; leave one of them out");
  }
  if (options.dry_run && options.run.empty()) return table.require("data");
  table.require("run");
  const bool resumes = !list_checkpoints(options.run).empty();
  if (options.fresh && resumes) {
    throw UsageError("--fresh: {} holds checkpoints already; choose another --run, or remove it",
                     options.run.string());
  }
  const auto earlier = options_of(options.run);
  if (!options.fresh && std::filesystem::exists(earlier) && (resumes || !table.given("data"))) {
    // auto stands for what was resolved then, on a machine that may have been another.
    if (options.precision == PrecisionChoice::automatic) table.forget("precision");
    table.read_file(earlier, [&](const std::string& name) { return superseded(table, name); });
    if (first) spdlog::info("options not given come from {}", earlier.string());
  }
  if (!table.given("data") && !std::filesystem::exists(options.run)) {
    throw UsageError("--data DATASET is missing: there is no run {} to go on with",
                     options.run.string());
  }
  table.require("data");
}

// What makes no difference on a CPU is not taken in silence.
void check_device_options(const TrainOptions& options, const OptionTable& table) {
  check_device(options.machine);
  if (options.machine.device == DeviceChoice::cpu && !options.cuda_graph &&
      table.origin("cuda-graph").starts_with("--")) {
    throw UsageError("--no-cuda-graph contradicts --device cpu; leave one of them out");
  }
}

// The architecture that is fixed already: that of the weights to start with, which a run that is
// there has in its own checkpoints.
std::optional<ModelConfig> model_of_weights(const TrainOptions& options, const Dataset& dataset) {
  if (options.initialize_from.empty()) return std::nullopt;
  auto steps = options.run.empty() ? std::vector<int64_t>() : list_checkpoints(options.run);
  for (; !steps.empty(); steps.pop_back()) {
    try {
      return Checkpoint::open(checkpoint_folder(options.run, steps.back())).info().model;
    } catch (const DataError&) {  // the trainer warns of it, and takes the next older one
    }
  }
  const Checkpoint weights = Checkpoint::open(options.initialize_from);
  check_same_tokenizer(weights, dataset);
  return weights.info().model;
}

// With --reduce all-reduce, an adapted micro-batch computes the same, in other pieces, when a run
// goes on with another number of workers.
void adapt_micro_batch(TrainOptions& options, const OptionTable& table, int workers, bool first) {
  if (options.reduce != Reduce::all_reduce) return;
  const bool from_run =
      table.origin("micro-batch-size").starts_with(options_of(options.run).string());
  if (!from_run || *options.batch_size % workers != 0) return;
  const int64_t share = *options.batch_size / workers;
  if (share % *options.micro_batch_size == 0) return;
  while (share % *options.micro_batch_size != 0) --*options.micro_batch_size;
  if (first) {
    spdlog::info("micro-batch-size is {} now, for {} workers", *options.micro_batch_size, workers);
  }
}

// When the last save must be done: as --time-limit says, or else as the batch system does.
std::optional<std::chrono::steady_clock::time_point> end_of(
    const TrainOptions& options, std::chrono::steady_clock::time_point started) {
  if (options.time_limit == "none") return std::nullopt;
  using Clock = std::chrono::steady_clock;
  const auto steady = [](double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  };
  if (!options.time_limit.empty()) return started + steady(to_duration(options.time_limit));
  const auto end = slurm_job_end();
  if (!end) return std::nullopt;
  const std::chrono::duration<double> left = *end - std::chrono::system_clock::now();
  spdlog::info("the job ends in {}: the run will have stopped and saved by then",
               duration_text(std::max(left.count(), 0.0)));
  return Clock::now() + steady(left.count());
}

// Keeps others out of a run folder that is there, all workers together: for the first one may have
// to wait until it knows whether another's lease is alive.
void take(RunLease& lease, const TrainOptions& options, StatusFile& status, Communicator& world) {
  bool told = false;
  double waiting = 1;
  while (waiting > 0) {
    waiting = 0;
    run_together(world, [&] {
      if (world.rank() != 0 || !std::filesystem::is_directory(options.run)) return;
      if (lease.try_take(lease_of_run(options.run), [&] { status.write(); })) return;
      waiting = 1;
      if (!std::exchange(told, true)) {
        spdlog::info("{} was left locked by another machine: watching for a sign of life for {} s",
                     options.run.string(), RunLease::kStale.count());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    });
    world.set_purpose("on whether the run folder is free");
    world.all_reduce(&waiting, 1, ReduceOp::max);
  }
  if (!lease.taken_over_from().empty()) {
    spdlog::info("{} was held by {}, which is gone: taking over", options.run.string(),
                 lease.taken_over_from());
  }
}

// The status begins with what is known of the run.
void open_status(StatusFile& status, const std::filesystem::path& run) {
  try {
    if (const auto earlier = read_status(run)) {
      status.update([&](RunStatus& now) {
        now.loss = earlier->loss;
        now.validation_loss = earlier->validation_loss;
      });
    }
  } catch (const DataError& error) {
    spdlog::warn("{}; it is written anew", error.what());
  }
  status.open(run);
  status.write();
}

// Only once the trainer has found nothing in them that contradicts the run.
void write_options(const TrainOptions& options, const OptionTable& table) {
  write_file_atomically(options_of(options.run),
                        table.to_config_file("# What this run was started with. 'lockstep train "
                                             "--config' accepts this file.\n"));
}

// Once, where the machine makes a difference.
void say_precision(PrecisionChoice asked, DType precision) {
  const bool fast = kernels::cpu::has_fast_product(precision);
  if (asked == PrecisionChoice::automatic && precision == DType::fp32) {
    spdlog::info("--precision auto is fp32: this machine has no fast product of bf16");
  } else if (precision != DType::fp32 && !fast) {
    spdlog::info(
        "{}: this machine has no fast product of it: operands are rounded to {} and multiplied in "
        "fp32, which is slower than --precision fp32",
        name(precision), name(precision));
  }
}

// Why attention is not by cuDNN, whose kernels are several times faster than our own; empty where
// it is, or where fp32 was asked for. Every worker calls it: it makes cuDNN's plans for the run.
std::string attention_obstacle(const TrainConfig& config) {
  if constexpr (kCudaIsBuilt) {
    if (config.device != Device::cuda || config.precision == DType::fp32) return "";
    if (config.model.dropout > 0) return "with dropout, cuDNN has no attention of the same bits";
    return kernels::cuda::cudnn_attention_obstacle({config.precision, config.micro_batch_size,
                                                    config.model.context_length,
                                                    config.model.heads()});
  }
  return "";
}

void say_how_it_computes(const TrainConfig& config, PrecisionChoice asked, bool first) {
  if (first && config.device == Device::cpu) say_precision(asked, config.precision);
  const std::string obstacle = attention_obstacle(config);
  if (first && !obstacle.empty()) spdlog::info("attention by our own kernels: {}", obstacle);
}

// The status file also learns how it ends.
ExitCode train_and_tell(const TrainConfig& config, Communicator& communicator,
                        const std::function<void()>& accepted, StatusFile& status,
                        MpiSession& session) {
  try {
    const ExitCode code = train(config, communicator, accepted, &status);
    const bool stopped = code == ExitCode::stopped;
    status.end(stopped ? RunStatus::State::stopped : RunStatus::State::finished, "");
    return code;
  } catch (const OutOfGpuMemory& error) {
    status.end(RunStatus::State::failed, error.what());
    fail_for_gpu_memory(config, session, error.what());
  } catch (const std::exception& error) {
    status.end(RunStatus::State::failed, error.what());
    throw;
  }
}

}  // namespace

ExitCode run_train(const Arguments& arguments, MpiSession* session) {
  const auto started = std::chrono::steady_clock::now();
  TrainOptions options;
  OptionTable table = train_table(options);
  if (wants_help(arguments)) return show_help(table, session);
  Communicator& world = session->world();
  const bool first = session->rank() == 0;
  std::optional<std::chrono::steady_clock::time_point> end_by;  // of the first worker
  run_together(world, [&] {
    read_options(options, table, arguments, first);
    if (options.dry_run) return;
    check_device_options(options, table);
    if (first) end_by = end_of(options, started);  // before a deadline: the batch system takes time
  });
  world.set_deadline(options.collective_timeout_s);
  const Device device = options.dry_run ? planned_device(options.machine.device, session)
                                        : start_device(options.machine, session);
  start_threads(options.machine.threads, session);
  Surroundings surroundings;
  surroundings.workers = session->size();
  surroundings.fast_bf16 = fast_bf16(device, session);
  const PrecisionChoice asked = options.precision;
  TrainConfig config;
  std::optional<StatusFile> status;  // the lease, which ends first, writes it
  RunLease lease(this_process(slurm_job()));
  status.emplace(lease, LOCKSTEP_VERSION);
  // Who waits for others to look again must not wait too long.
  const double patience_s = std::min(5.0, options.collective_timeout_s / 2);
  if (!options.dry_run) {
    take(lease, options, *status, world);
    check_run_is_shared(lease, options.run, patience_s, *session);
  }
  run_together(world, [&] {
    make_absolute(options.data);
    make_absolute(options.initialize_from);
    const Dataset dataset = Dataset::open(options.data);
    surroundings.vocab_size = dataset.tokenizer().vocab_size();
    surroundings.weights = model_of_weights(options, dataset);
    adapt_micro_batch(options, table, session->size(), first);
    config = resolve_train(options, table, surroundings);
    config.device = device;
    if (device == Device::cpu && !options.dry_run) check_host_memory(config, *session);
    config.end_by = end_by;
  });
  if (options.dry_run) {
    run_together(world, [&] {
      if (!first) return;
      validate(batch_plan(config, world));
      fmt::print("{}",
                 dry_run_text(config, session->size(), session->local_size(), options.predict));
    });
    return ExitCode::done;
  }
  if (!options.stage.empty()) config.data = stage(options.data, options.stage, *session);
  say_how_it_computes(config, asked, first);
  const auto nccl = device_communicator(device, world, options.collective_timeout_s);
  if (device == Device::cuda) check_gpu_memory(config, *session);
  const auto accepted = [&] {
    run_together(world, [&] {
      if (!first) return;
      if (!lease.try_take(lease_of_run(options.run),
                          [&] { status->write(); })) {  // of a run that has begun now
        throw UsageError("another program has begun to train in {} just now; choose another --run",
                         options.run.string());
      }
    });
    check_run_is_shared(lease, options.run, patience_s, *session);
    if (!first) return;
    write_options(options, table);
    open_status(*status, options.run);
  };
  return train_and_tell(config, nccl ? *nccl : world, accepted, *status, *session);
}

}  // namespace lockstep::launch
