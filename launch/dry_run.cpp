#include "launch/dry_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"
#include "core/text.h"
#include "launch/machine.h"
#include "trainer/rehearsal.h"

namespace lockstep::launch {
namespace {

// Sizes of GPUs as they are sold: 10^9 bytes. What a GPU has beyond, a few percent, is left to
// CUDA and NCCL.
constexpr int64_t kGpuGigabytes[] = {24, 40, 80, 141};
constexpr int64_t kGigabyte = 1'000'000'000;

// Of the worker that needs most: their shards, and what waits for the reduction, differ a little.
Training::Memory largest_plan(const TrainConfig& config, int workers) {
  Training::Memory largest;
  for (int rank = 0; rank < workers; rank++) {
    const Training::Memory plan = planned_memory(config, rank, workers);
    if (plan.total() > largest.total()) largest = plan;
  }
  return largest;
}

std::string micro_batch_lines(const TrainConfig& config, const Training::Memory& plan,
                              int local_workers) {
  const auto line = [&](const std::string& memory, int64_t bytes) {
    const int64_t most = largest_micro_batch(config, plan, bytes);
    return fmt::format("  {:<24}{:>12}\n", memory, most == 0 ? "none" : std::to_string(most));
  };
  std::string text = fmt::format("\nLargest --micro-batch-size, of sequences of {} tokens:\n",
                                 config.model.context_length);
  if (config.device == Device::cuda) {
    for (const int64_t gigabytes : kGpuGigabytes) {
      text += line(fmt::format("a GPU of {} GB", gigabytes), gigabytes * kGigabyte);
    }
  } else if (const int64_t here = this_machine().memory_bytes / local_workers; here > 0) {
    text += line(fmt::format("{} here", size_text(here)), here);
  }
  return text;
}

std::string prediction_text(const Prediction& prediction, const GpuLimits& gpu, int workers,
                            int64_t step_tokens) {
  const Efficiency used;
  std::string text = fmt::format(
      "\nPredicted for {} x {} at {:.0f} % of {:.0f} TFLOP/s in products, {:.0f} % of {:.1f} "
      "TFLOP/s in other\narithmetic, {:.0f} % of {:.2f} TB/s, {:.0f} us a launch{}:\n\n",
      workers, gpu.title, 100 * used.tensor, gpu.tensor_rate / 1e12, 100 * used.vector,
      gpu.vector_rate / 1e12, 100 * used.memory, gpu.memory_rate / 1e12, 1e6 * used.launch_s,
      workers == 1 ? ""
                   : fmt::format(", {:.0f} % of {:.0f} GB/s between GPUs", 100 * used.link,
                                 gpu.link_rate / 1e9));
  text += fmt::format("  {:<32}{:>7}{:>10}{:>11}{:>10}{:>8}  {}\n", "", "calls", "GB", "GFLOP",
                      "ms", "share", "bound by");
  double total_s = 0;
  for (const auto& row : prediction.rows) total_s += row.seconds;
  Prediction::Row sum{.name = "sum"};
  for (const auto& row : prediction.rows) {
    const double arithmetic_s = row.seconds - row.launch_s - row.transfer_s;
    const std::string_view bound = row.launch_s > row.seconds / 2  ? "launches"
                                   : row.transfer_s > arithmetic_s ? "transfer"
                                                                   : "arithmetic";
    text += fmt::format("  {:<32}{:>7}{:>10.3f}{:>11.1f}{:>10.3f}{:>7.1f}%  {}\n", row.name,
                        row.calls, row.bytes / 1e9, row.flops / 1e9, 1e3 * row.seconds,
                        100 * row.seconds / total_s, bound);
    sum.calls += row.calls;
    sum.bytes += row.bytes;
    sum.flops += row.flops;
  }
  text += fmt::format("  {:<32}{:>7}{:>10.3f}{:>11.1f}{:>10.3f}\n", sum.name, sum.calls,
                      sum.bytes / 1e9, sum.flops / 1e9, 1e3 * total_s);
  text += fmt::format(
      "\n{:.2f} ms a step of {} tokens: {} tokens/s, {:.1f} % of peak (6 N + 6 L W T FLOPs a "
      "token)\n",
      1e3 * prediction.step_s, grouped(step_tokens),
      grouped(static_cast<int64_t>(prediction.tokens_per_second)), 100 * prediction.peak_share);
  return text;
}

const GpuLimits& gpu_named(const std::string& name) {
  return *std::find_if(known_gpus().begin(), known_gpus().end(),
                       [&](const GpuLimits& gpu) { return gpu.name == name; });
}

}  // namespace

std::string memory_table(const TrainConfig& config, const Training::Memory& plan) {
  std::string text;
  const auto line = [&](std::string_view what, int64_t bytes, const std::string& note) {
    text += fmt::format("  {:<24}{:>12}", what, size_text(bytes));
    text += note.empty() ? "\n" : fmt::format("   {}\n", note);
  };
  const bool own_master = config.precision != DType::fp32;
  line("weights", plan.model.weights, std::string(name(config.precision)));
  line("gradients", plan.model.gradients, "fp32");
  line(own_master ? "master weights, moments" : "moments", plan.optimizer,
       config.reduce == Reduce::ordered ? "fp32, of this worker's shard" : "fp32");
  line("reduction buffers", plan.reduction, std::string(name(config.gradient_dtype)));
  line("activations", plan.model.activations,
       config.recompute ? "with --recompute" : "--recompute needs less");
  if (config.device == Device::cuda) {
    line("workspace", plan.model.workspace, "of products, the classifier's chunk and kernels");
    line("inputs", plan.model.inputs + plan.inputs, "");
  }
  line("sum", plan.total(), "");
  return text;
}

std::string dry_run_text(const TrainConfig& config, int workers, int local_workers,
                         const std::string& gpu) {
  if (!gpu.empty() && config.device != Device::cuda) {
    throw UsageError("--predict {} is of GPUs: add --device cuda", gpu);
  }
  if (!gpu.empty() && !kCudaIsBuilt) {
    throw DeviceError("--predict {}: this build has no CUDA; leave it out for the plan alone", gpu);
  }
  const Training::Memory plan = largest_plan(config, workers);
  const int64_t step_tokens = config.batch_size * config.model.context_length;
  std::string text = fmt::format(
      "{} model of {} parameters, {} on {}; {}, steps of {} tokens, micro-batches of {}\n\n"
      "Memory of each worker:\n",
      name(config.model.family), count_text(ParameterTable(config.model).size()),
      name(config.precision), name(config.device), plural(workers, "worker"), grouped(step_tokens),
      plural(config.micro_batch_size, "sequence"));
  text += memory_table(config, plan) + micro_batch_lines(config, plan, local_workers);
  if (!gpu.empty()) {
    const GpuLimits& limits = gpu_named(gpu);
    text += prediction_text(predicted_step(config, workers, limits), limits, workers, step_tokens);
  }
  return text;
}

}  // namespace lockstep::launch
