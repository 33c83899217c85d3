#include "launch/memory_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "comm/agreement.h"
#include "core/text.h"
#include "launch/dry_run.h"
#include "launch/machine.h"
#include "trainer/rehearsal.h"

namespace lockstep::launch {
namespace {

std::string plan_of_worker(const TrainConfig& config, const Training::Memory& plan) {
  return "Memory that each worker needs:\n" + memory_table(config, plan);
}

// The largest micro-batch, of those that a virtual worker's batch can be cut into, with which a
// worker needs no more than so many bytes; 0: none.
int64_t micro_batch_that_fits(const TrainConfig& config, const Training::Memory& plan,
                              int64_t memory_bytes) {
  const int64_t share = config.batch_size / config.virtual_workers;
  int64_t most = std::min(largest_micro_batch(config, plan, memory_bytes), share);
  while (most > 0 && share % most != 0) most--;
  return most;
}

std::string what_fits(const TrainConfig& config, const MpiSession& session,
                      const Training::Memory& plan, int64_t memory_bytes) {
  TrainConfig less = config;
  less.recompute = true;
  const Training::Memory plan_of_less = planned_memory(less, session.rank(), session.size());
  const int64_t as_it_is = micro_batch_that_fits(config, plan, memory_bytes);
  const int64_t recomputed = micro_batch_that_fits(less, plan_of_less, memory_bytes);
  std::vector<std::string> ways;
  if (as_it_is > 0) ways.push_back(fmt::format("--micro-batch-size {} fits", as_it_is));
  if (recomputed >= config.micro_batch_size) {
    ways.push_back("--recompute fits, a third slower");
  } else if (recomputed > as_it_is) {
    ways.push_back(
        fmt::format("--recompute with --micro-batch-size {} fits, a third slower", recomputed));
  }
  if (!ways.empty()) return fmt::format("{}", fmt::join(ways, "; "));
  return fmt::format(
      "not even --recompute --micro-batch-size 1 fits: use a smaller model, {}"
      "or GPUs with more memory",
      config.reduce == Reduce::ordered ? "more workers, which share the moments, " : "");
}

}  // namespace

void check_host_memory(const TrainConfig& config, const MpiSession& session) {
  const int64_t parameters = ParameterTable(config.model).size();
  // Weights and gradients; two moments, and master weights where they are not the weights
  // themselves, which the ordered reduction deals out.
  const int64_t whole = size_bytes(config.precision) + 4;
  const int64_t state = config.precision == DType::fp32 ? 8 : 12;
  const int64_t owners = config.reduce == Reduce::ordered ? session.size() : 1;
  // Gradients of virtual workers that wait for their neighbours (docs/determinism.md).
  const auto each = static_cast<uint64_t>(config.virtual_workers / session.size());
  const int64_t waiting = size_bytes(config.gradient_dtype) * (std::bit_width(each) - 1);
  const int64_t needed =
      (parameters * (whole + waiting) + parameters * state / owners) * session.local_size();
  const int64_t there = this_machine().memory_bytes;
  if (there == 0 || needed <= there) return;
  throw UsageError(
      "a model of {} parameters needs {} on {} for {}, activations aside; there are {}\n"
      "choose a smaller model, or fewer workers a host",
      count_text(parameters), size_text(needed), session.host(),
      session.local_size() == 1 ? "one worker" : fmt::format("{} workers", session.local_size()),
      size_text(there));
}

void check_gpu_memory(const TrainConfig& config, MpiSession& session) {
  const Gpu gpu = this_gpu(cuda_device());
  const auto gpus = said_by_all(session.world(), gpu.id);
  const auto sharers = std::count(gpus.begin(), gpus.end(), gpu.id);
  const int64_t free = free_gpu_memory() / sharers;
  const Training::Memory plan = planned_memory(config, session.rank(), session.size());
  double fit = plan.total() <= free ? 1 : 0;
  session.world().all_reduce(&fit, 1, ReduceOp::min);
  if (fit == 0 && session.rank() == 0) fmt::print(stderr, "{}", plan_of_worker(config, plan));
  run_together(session.world(), [&] {
    if (plan.total() <= free) return;
    throw DeviceError("worker {} on {} needs {} of its GPU's {}, of which {} are free{}\n{}",
                      session.rank(), session.host(), size_text(plan.total()),
                      size_text(gpu.memory_bytes), size_text(free),
                      sharers == 1 ? "" : " for each worker that shares it",
                      what_fits(config, session, plan, free));
  });
}

void fail_for_gpu_memory(const TrainConfig& config, const MpiSession& session,
                         const std::string& words) {
  const Training::Memory plan = planned_memory(config, session.rank(), session.size());
  fmt::print(stderr, "{}", plan_of_worker(config, plan));
  throw DeviceError(
      "{}\n"
      "CUDA, its libraries and other programs need memory beside the plan above: reduce "
      "--micro-batch-size, or add --recompute",
      words);
}

}  // namespace lockstep::launch
