#include "launch/train_options.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "launch/time_limit.h"
#include "trainer/batch_source.h"
#include "trainer/rehearsal.h"

namespace lockstep::launch {
namespace {

// Sizes of a model when none are given: one that learns something from a few megabytes of text
// within minutes on a few cores.
constexpr int64_t kDefaultLayers = 4, kDefaultHeads = 4, kDefaultWidth = 256, kDefaultContext = 256;
// Sequences a step, and tokens of a forward pass: enough rows to keep matrix products efficient.
constexpr int64_t kDefaultBatch = 16, kDefaultMicroBatchTokens = 4096;

const char* const kPresetSizes[] = {"family",   "layers",   "heads",
                                    "kv-heads", "ffn-size", "hidden-size"};

bool is_preset_size(const std::string& name) {
  return std::find(std::begin(kPresetSizes), std::end(kPresetSizes), name) !=
         std::end(kPresetSizes);
}

OptionValue preset_name(std::string& field) {
  return {.placeholder = "PRESET",
          .set =
              [&field](const std::string& text) {
                preset(text);  // throws, with the nearest names, when there is none
                field = text;
              },
          .get = [&field] { return field; }};
}

std::vector<std::string> gpu_names() {
  std::vector<std::string> names;
  for (const GpuLimits& gpu : known_gpus()) names.emplace_back(gpu.name);
  return names;
}

OptionValue gpu_name(std::string& field) {
  std::vector<std::pair<std::string, std::string>> names;
  for (const std::string& name : gpu_names()) names.emplace_back(name, name);
  return choice(field, names, fmt::format("{}", fmt::join(gpu_names(), "|")));
}

OptionValue loss_scale(std::string& field) {
  return {.placeholder = "dynamic|NUMBER",
          .set =
              [&field](const std::string& text) {
                if (text != "dynamic") {
                  try {
                    to_real(text, kPositive);
                  } catch (const std::invalid_argument&) {
                    throw std::invalid_argument("dynamic or a number above 0 is needed");
                  }
                }
                field = text;
              },
          .get = [&field] { return field; }};
}

OptionValue time_limit(std::string& field) {
  return {.placeholder = "TIME",
          .set =
              [&field](const std::string& text) {
                if (text != "none") to_duration(text);
                field = text;
              },
          .get = [&field] { return field; }};
}

std::vector<std::pair<std::string, kernels::Activation>> activations() {
  using kernels::Activation;
  std::vector<std::pair<std::string, Activation>> all;
  for (const auto activation : {Activation::relu, Activation::sigmoid, Activation::tanh,
                                Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    all.emplace_back(kernels::name(activation), activation);
  }
  return all;
}

void add_run_options(OptionTable& table, TrainOptions& o) {
  table.group("Run");
  table.add("data", path(o.data, "DATASET"), "dataset folder, made by 'lockstep prepare'");
  table.add("run", path(o.run, "DIR"),
            "run folder: checkpoints, metrics.jsonl, run.cfg; a run that is there goes on",
            InConfigFile::no);
  table.add("config", path(o.config, "FILE"),
            "read options from FILE, a 'name = value' a line; the command line comes first",
            InConfigFile::no);
  table.add("fresh", flag(o.fresh), "refuse to go on with a run that is there", InConfigFile::no);
  table.add("dry-run", flag(o.dry_run),
            "train nothing, make nothing: print what each worker's device would have to hold, and "
            "the largest micro-batches; needs neither a GPU for --device cuda nor --run",
            InConfigFile::no);
  table.add("predict", gpu_name(o.predict),
            fmt::format("with --dry-run --device cuda: the time of a step on {}, kernel by kernel",
                        fmt::join(gpu_names(), ", ")),
            InConfigFile::no);
  table.add("initialize-from", path(o.initialize_from, "CHECKPOINT"),
            "start with these weights (fine-tuning): a step or run folder, or a model.h5");
  table.add("steps", integer(o.steps, 1), "optimizer steps in all (default 1000)");
  table.add("seed", seed(o.seed), "of weights, order of the data and dropout (default 0)");
}

void add_model_options(OptionTable& table, TrainOptions& o) {
  table.group("Model");
  table.add("model", preset_name(o.preset),
            fmt::format("a published size instead of the options below: {}",
                        fmt::join(preset_names(), ", ")));
  table.add("family",
            choice(o.family, {{"gpt2", Family::gpt2}, {"llama", Family::llama}}, "gpt2|llama"),
            "architecture; gpt2: learned positions, layernorm, biases; llama: RoPE, RMSNorm, gated "
            "feed-forward (default gpt2)");
  table.add("layers", integer(o.layers, 1, 4096), "transformer layers (default 4)");
  table.add("heads", integer(o.heads, 1, 1 << 20), "attention heads a layer (default 4)");
  table.add("kv-heads", integer(o.kv_heads, 1, 1 << 20),
            "key and value heads, shared by groups of heads; llama (default: as many as heads)");
  table.add("hidden-size", integer(o.hidden_size, 1, 1 << 20),
            "channels of the residual stream, a multiple of heads (default 256)");
  table.add("ffn-size", integer(o.ffn_size, 1, 1 << 22),
            "channels inside the feed-forward block (default: gpt2 4, llama 8/3 of hidden-size, "
            "the latter rounded up to a multiple of 16)");
  table.add(
      "context-length", integer(o.context_length, 1, 1 << 24),
      "tokens of the longest sequence, and of those trained on (default 256, or the preset's)");
  table.add("activation", choice(o.activation, activations()),
            "relu, sigmoid, tanh, gelu, gelu_tanh, silu (default: gpt2 gelu_tanh, llama silu)");
  table.add("dropout", real(o.dropout, {0, 1, false, true}),
            "probability of dropping a value, from 0 to below 1 (default 0)");
}

void add_step_options(OptionTable& table, TrainOptions& o) {
  table.group("Batch");
  table.add("batch-size", integer(o.batch_size, 1),
            "sequences a step, over all workers (default 16, rounded up to a multiple of virtual "
            "workers)");
  table.add(
      "micro-batch-size", integer(o.micro_batch_size, 1),
      "sequences a forward pass of one worker; the rest of its share is accumulated (default: "
      "as many as hold 4096 tokens)");
  table.add("virtual-workers", integer(o.virtual_workers, 1, 1 << 14),
            "what the run is defined over: any number of workers that divides it gives the same "
            "bits (default: the workers that the run first starts with)");

  OptimizerConfig& p = o.optimizer;
  table.group("Optimizer");
  table.add("optimizer",
            choice(p.kind, {{"adamw", OptimizerKind::adamw}, {"adam", OptimizerKind::adam}},
                   "adamw|adam"),
            "adamw decouples weight decay, adam adds it to the gradient (default adamw)");
  table.add("beta1", real(p.beta1, {0, 1, false, true}), "decay of the first moment (default 0.9)");
  table.add("beta2", real(p.beta2, {0, 1, false, true}),
            "decay of the second moment (default 0.95)");
  table.add("epsilon", real(p.epsilon, kPositive), "added to the root (default 1e-8)");
  table.add("weight-decay", real(p.weight_decay, kNotNegative),
            "of matrices and embeddings (default 0.1)");
  table.add("clip-norm", real(p.clip_norm, kNotNegative),
            "largest L2 norm of the whole gradient; 0: no limit (default 1)");
  table.add("clip-value", real(p.clip_value, kNotNegative),
            "largest magnitude of each value of the gradient; 0: no limit (default 0)");

  table.group("Schedule");
  table.add("learning-rate", real(o.learning_rate, kPositive),
            "at its peak (default: 0.46 / hidden-size, at most 2e-3; a tenth of it with "
            "--initialize-from)");
  table.add(
      "schedule",
      choice(o.schedule, {{"cosine", Schedule::cosine},
                          {"linear", Schedule::linear},
                          {"constant", Schedule::constant},
                          {"inverse-sqrt", Schedule::inverse_sqrt},
                          {"wsd", Schedule::wsd}}),
      "after the warm-up; cosine, linear, constant, inverse-sqrt or wsd (constant, then falling "
      "over the last fifth of the steps) (default cosine)");
  table.add("warmup-steps", integer(o.warmup_steps, 0),
            "steps of linear rise at the beginning (default: 5 % of the steps, at most 2000)");
  table.add("min-lr-ratio", real(o.min_lr_ratio, {0, 1}),
            "the lowest learning rate, as a share of the peak (default 0.1)");
}

void add_machine_options(OptionTable& table, TrainOptions& o) {
  table.group("Numerics");
  add_precision_option(table, o.precision);
  table.add("loss-scale", loss_scale(o.loss_scale),
            "of fp16: dynamic, or a fixed number (default dynamic)");
  table.add("deterministic", negatable_flag(o.deterministic),
            "the same bits on any number of workers that divides --virtual-workers; --no-...: sums "
            "over workers in whatever order is quickest, which is --reduce all-reduce (default "
            "deterministic)");
  table.add("reduce",
            choice(o.reduce, {{"ordered", Reduce::ordered}, {"all-reduce", Reduce::all_reduce}},
                   "ordered|all-reduce"),
            "how gradients are summed over workers: ordered, the same bits on any number of them, "
            "optimizer state dealt out; all-reduce, in the library's order, optimizer state on "
            "every worker (default ordered)");
  table.add("check-replicas", integer(o.check_replicas, 0),
            "steps between comparisons of all workers' weights, which end the run where they "
            "differ; 0: none (default 0)");
  table.add("gradient-dtype",
            choice(o.gradient_dtype, {{"fp32", DType::fp32}, {"bf16", DType::bf16}}, "fp32|bf16"),
            "in which gradients travel between workers, with --reduce ordered (default fp32)");
  table.add("recompute", flag(o.recompute),
            "redo each layer's forward pass in backward: less memory, a third more time, the same "
            "bits");
  table.add("cuda-graph", negatable_flag(o.cuda_graph),
            "with --device cuda: capture the step once and launch it whole, the same bits (default "
            "cuda-graph)");

  table.group("Machine");
  add_machine_options(table, o.machine);
  table.add("stage", path(o.stage, "DIR"),
            "copy the dataset to DIR on each host, unless it is there already, and read it there",
            InConfigFile::no);
  table.add("collective-timeout", real(o.collective_timeout_s, kPositive),
            "seconds that a worker waits for the others before the run ends with exit code 4 "
            "(default 600)",
            InConfigFile::no);
  table.add("time-limit", time_limit(o.time_limit),
            "save and exit with 75 within this time from the start: 5400 (seconds), 90m, 2h30m, "
            "1-12:00:00; none: no limit (default: when Slurm ends the job, where it says)",
            InConfigFile::no);

  table.group("Output");
  table.add("checkpoint-every", integer(o.checkpoint_every, 0),
            "steps between checkpoints; 0: only at the end (default 500)");
  table.add("keep", integer(o.keep, 0, 1 << 30),
            "checkpoints to keep, the newest; 0: all (default 3)");
  table.add("evaluate-every", integer(o.evaluate_every, 0),
            "steps between evaluations of the validation split; 0: only at the end (default 250)");
  table.add("log-every", integer(o.log_every, 1), "steps between lines of progress (default 10)");
  table.add(
      "profile", path(o.profile, "FILE"),
      "profile some steps, after two to warm up: a trace for Perfetto or chrome://tracing into "
      "FILE, a table of kernels to standard output",
      InConfigFile::no);
  table.add("profile-steps", integer(o.profile_steps, 1),
            "how many steps --profile takes (default 3)", InConfigFile::no);
}

ModelConfig model_by_options(TrainOptions& o, const OptionTable& table) {
  ModelConfig model;
  if (!o.preset.empty()) {
    for (const char* size : kPresetSizes) {
      if (table.given(size)) {
        throw UsageError("{} contradicts {} {}, which says it too; leave one of them out",
                         table.origin(size), table.origin("model"), o.preset);
      }
    }
    model = preset(o.preset);
  } else {
    model = family_defaults(o.family.value_or(Family::gpt2));
    model.num_layers = o.layers.value_or(kDefaultLayers);
    model.num_heads = o.heads.value_or(kDefaultHeads);
    model.num_kv_heads = o.kv_heads.value_or(0);
    model.hidden_size = o.hidden_size.value_or(kDefaultWidth);
    model.ffn_size = o.ffn_size.value_or(0);
    model.context_length = kDefaultContext;
  }
  if (o.context_length) model.context_length = *o.context_length;
  if (o.activation) model.activation = *o.activation;
  fill_in_sizes(model);
  return model;
}

// The architecture of given weights cannot be chosen any more, only said again.
ModelConfig model_of_weights(const TrainOptions& o, const OptionTable& table, ModelConfig model) {
  const auto agree = [&](const char* option, const auto& said, const auto& has) {
    if (table.given(option) && said && *said != has) {
      throw UsageError("{} {} contradicts the weights that it starts with, where it is {}",
                       table.origin(option), *said, has);
    }
  };
  agree("layers", o.layers, model.num_layers);
  agree("heads", o.heads, model.num_heads);
  agree("kv-heads", o.kv_heads, model.num_kv_heads);
  agree("hidden-size", o.hidden_size, model.hidden_size);
  agree("ffn-size", o.ffn_size, model.ffn_size);
  if (o.family && *o.family != model.family) {
    throw UsageError("{} {} contradicts the weights that it starts with, which are {}",
                     table.origin("family"), name(*o.family), name(model.family));
  }
  if (o.activation && *o.activation != model.activation) {
    throw UsageError("{} {} contradicts the weights that it starts with, which have {}",
                     table.origin("activation"), kernels::name(*o.activation),
                     kernels::name(model.activation));
  }
  if (!o.preset.empty()) {
    const ModelConfig said = preset(o.preset);
    if (said.family != model.family || said.num_layers != model.num_layers ||
        said.hidden_size != model.hidden_size) {
      throw UsageError("{} {} contradicts the weights that it starts with: {}, {} layers, width {}",
                       table.origin("model"), o.preset, name(model.family), model.num_layers,
                       model.hidden_size);
    }
  }
  if (o.context_length) model.context_length = *o.context_length;
  return model;
}

// What run.cfg shall say of the model: sizes, unless a preset says them.
void write_back(TrainOptions& o, const ModelConfig& model) {
  o.context_length = model.context_length;
  o.activation = model.activation;
  if (!o.preset.empty()) return;
  o.family = model.family;
  o.layers = model.num_layers;
  o.heads = model.num_heads;
  // Always the heads in gpt2: said again, it would contradict other heads before the run does.
  if (model.family == Family::llama) o.kv_heads = model.num_kv_heads;
  o.hidden_size = model.hidden_size;
  o.ffn_size = model.ffn_size;
}

// The order of sums over workers, and what the run is defined over.
void resolve_reduction(TrainOptions& o, const OptionTable& table, int workers) {
  if (!o.reduce) o.reduce = o.deterministic ? Reduce::ordered : Reduce::all_reduce;
  if (o.reduce == Reduce::ordered) {
    if (!o.deterministic) {
      throw UsageError("{} contradicts {} ordered; leave one of them out",
                       table.origin("deterministic"), table.origin("reduce"));
    }
    if (!o.virtual_workers) o.virtual_workers = workers;
    if (!o.gradient_dtype) o.gradient_dtype = DType::fp32;
    if (*o.virtual_workers % workers != 0) {
      throw UsageError(
          "the {} virtual worker{} of the run cannot be dealt to {} workers: start it with {}, or "
          "a "
          "new run with another --virtual-workers",
          *o.virtual_workers, *o.virtual_workers == 1 ? "" : "s", workers,
          divisors_text(*o.virtual_workers));
    }
    return;
  }
  for (const char* ordered_only : {"virtual-workers", "gradient-dtype"}) {
    // A configuration file may be an ordered run's, of which this shall be a variant.
    if (table.origin(ordered_only).starts_with("--")) {
      throw UsageError("{} is of use with --reduce ordered only; leave it out",
                       table.origin(ordered_only));
    }
  }
  o.virtual_workers.reset();
  o.gradient_dtype.reset();
}

// `shares`: equal parts of the batch, one a virtual worker, or worker where there are none.
void resolve_batch(TrainOptions& o, const OptionTable& table, int64_t context_length,
                   int64_t shares) {
  const std::string sharer = table.given("virtual-workers") ? "virtual worker" : "worker";
  if (!o.batch_size) o.batch_size = (kDefaultBatch + shares - 1) / shares * shares;
  if (*o.batch_size % shares != 0) {
    const int64_t below = *o.batch_size / shares * shares;
    throw UsageError(
        "{} {} is not divisible by {} {}s; the nearest that are: {}{}; or take a number of {}s out "
        "of {}",
        table.origin("batch-size"), *o.batch_size, shares, sharer,
        below > 0 ? fmt::format("{} and ", below) : "", below + shares, sharer,
        divisors_text(*o.batch_size));
  }
  const int64_t share = *o.batch_size / shares;
  if (!o.micro_batch_size) {
    const int64_t most = std::max<int64_t>(1, kDefaultMicroBatchTokens / context_length);
    o.micro_batch_size = std::min(share, most);
    while (share % *o.micro_batch_size != 0) --*o.micro_batch_size;
  }
  if (share % *o.micro_batch_size != 0) {
    throw UsageError(
        "{} {} does not divide the {} sequences a {} ({} over {} {}{}); choose one of {}",
        table.origin("micro-batch-size"), *o.micro_batch_size, share, sharer, *o.batch_size, shares,
        sharer, shares == 1 ? "" : "s", divisors_text(share));
  }
}

void resolve_schedule(TrainOptions& o, const OptionTable& table, int64_t hidden_size) {
  if (!o.learning_rate) {
    // 6e-4 at width 768, as GPT-3 125M, and in inverse proportion to the width: near to the rates
    // of the larger ones (Brown et al., 2020, Table 2.1).
    const double rate = std::min(2e-3, 0.46 / static_cast<double>(hidden_size));
    o.learning_rate = o.initialize_from.empty() ? rate : rate / 10;
  }
  if (!o.warmup_steps) o.warmup_steps = std::min<int64_t>(o.steps / 20, 2000);
  if (table.given("warmup-steps") && *o.warmup_steps > o.steps) {
    throw UsageError("{} {} is more than the {} steps of the run; make it smaller",
                     table.origin("warmup-steps"), *o.warmup_steps, o.steps);
  }
}

void check_loss_scale(const TrainOptions& o, const OptionTable& table, DType precision) {
  if (precision != DType::fp16 && o.loss_scale != "dynamic" &&
      to_real(o.loss_scale, kPositive) != 1) {
    throw UsageError("{} {} is of use with --precision fp16 only; leave it out",
                     table.origin("loss-scale"), o.loss_scale);
  }
}

PrecisionChoice choice_of(DType precision) {
  if (precision == DType::fp32) return PrecisionChoice::fp32;
  return precision == DType::bf16 ? PrecisionChoice::bf16 : PrecisionChoice::fp16;
}

}  // namespace

OptionTable train_table(TrainOptions& options) {
  OptionTable table("lockstep train", "--data DATASET --run DIR [OPTION]...",
                    "Trains a model; under mpirun, on all workers. A run that is there goes on: "
                    "then options that\nare not given come from RUN/run.cfg, so that 'lockstep "
                    "train --run DIR' is enough. SIGTERM,\nSIGINT and SIGUSR1 save and end it with "
                    "exit code 75; run it again to go on.");
  add_run_options(table, options);
  add_model_options(table, options);
  add_step_options(table, options);
  add_machine_options(table, options);
  return table;
}

bool superseded(const OptionTable& given, const std::string& name) {
  if (is_preset_size(name)) return given.given("model");
  if (name != "model") return false;
  return std::any_of(std::begin(kPresetSizes), std::end(kPresetSizes),
                     [&](const char* size) { return given.given(size); });
}

TrainConfig resolve_train(TrainOptions& o, const OptionTable& table,
                          const Surroundings& surroundings) {
  ModelConfig model = surroundings.weights ? model_of_weights(o, table, *surroundings.weights)
                                           : model_by_options(o, table);
  if (!surroundings.weights) model.vocab_size = surroundings.vocab_size;
  model.dropout = static_cast<float>(o.dropout);
  validate(model);
  write_back(o, model);
  resolve_reduction(o, table, surroundings.workers);
  resolve_batch(o, table, model.context_length, o.virtual_workers.value_or(surroundings.workers));
  resolve_schedule(o, table, model.hidden_size);
  const DType precision = resolve_precision(o.precision, surroundings.fast_bf16);
  o.precision = choice_of(precision);
  check_loss_scale(o, table, precision);
  if (!o.checkpoint_every) o.checkpoint_every = 500;
  if (!o.evaluate_every) o.evaluate_every = 250;

  TrainConfig config;
  config.data = o.data;
  config.run = o.run;
  config.fresh = o.fresh;
  config.initialize_from = o.initialize_from;
  config.steps = o.steps;
  config.seed = o.seed;
  config.model = model;
  config.batch_size = *o.batch_size;
  config.micro_batch_size = *o.micro_batch_size;
  config.virtual_workers = o.virtual_workers.value_or(surroundings.workers);
  config.reduce = *o.reduce;
  config.gradient_dtype = o.gradient_dtype.value_or(DType::fp32);
  config.check_replicas = o.check_replicas;
  config.collective_timeout_s = o.collective_timeout_s;
  config.optimizer = o.optimizer;
  config.schedule = {o.schedule, *o.learning_rate, *o.warmup_steps, o.min_lr_ratio};
  config.precision = precision;
  if (o.loss_scale != "dynamic") config.loss_scale = to_real(o.loss_scale, kPositive);
  config.recompute = o.recompute;
  config.cuda_graph = o.cuda_graph;
  config.checkpoint_every = *o.checkpoint_every;
  config.keep = o.keep;
  config.evaluate_every = *o.evaluate_every;
  config.log_every = o.log_every;
  config.profile = o.profile;
  config.profile_steps = o.profile_steps;
  return config;
}

}  // namespace lockstep::launch
