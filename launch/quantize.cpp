#include "inference/quantize.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "inference/comparison.h"
#include "launch/command.h"
#include "launch/compute_options.h"
#include "launch/same_tokenizer.h"
#include "launch/text.h"

namespace lockstep::launch {
namespace {

struct QuantizeOptions {
  std::filesystem::path checkpoint, output, calibration, evaluation;
  Quantization quantization;
  int64_t calibration_tokens = 1 << 16, evaluation_tokens = 1 << 16;
  PrecisionChoice precision = PrecisionChoice::automatic;
  std::optional<int> threads;
  bool json = false;
};

OptionTable options(QuantizeOptions& o) {
  OptionTable table("lockstep checkpoint quantize", "PATH --bits 8|4 --output OUT [OPTION]...",
                    "Makes a model file whose matrices have 8 or 4 bits a weight, for generate and "
                    "evaluate on the CPU. PATH\nis a run folder, a step folder or an exported "
                    "model.h5.");
  table.positional("PATH", o.checkpoint);
  table.group("Output");
  table.add("output", path(o.output, "OUT"), "the file to make");
  table.add("bits", choice(o.quantization.bits, {{"8", 8}, {"4", 4}}, "8|4"), "bits of a weight");
  table.add("group-size", integer(o.quantization.group_size, 1),
            "weights of a row that share a scale: 32, 64 or a multiple of 128 (default 128)");
  table.group("Calibration");
  table.add("calibrate", path(o.calibration, "DATASET"),
            "round with regard to what the layers see on this dataset, its training split (GPTQ); "
            "without it each weight is rounded to the nearest");
  table.add("calibration-tokens", integer(o.calibration_tokens, 1),
            "tokens to calibrate on (default 65536)");
  table.group("Report");
  table.add("evaluate", path(o.evaluation, "DATASET"),
            "compare with the whole weights on its validation split (default: the dataset of "
            "--calibrate)");
  table.add("evaluation-tokens", integer(o.evaluation_tokens, 0),
            "tokens to compare on (default 65536; 0: all)");
  table.add("json", flag(o.json), "one JSON object in place of the table");
  table.group("Machine");
  add_precision_option(table, o.precision);
  table.add("threads", integer(o.threads, 1, 4096), "threads (default: the cores it may use)");
  return table;
}

void refuse_contradictions(const OptionTable& table, const QuantizeOptions& o) {
  if (table.given("calibration-tokens") && o.calibration.empty()) {
    throw UsageError("--calibration-tokens needs --calibrate DATASET");
  }
  if (table.given("evaluation-tokens") && o.evaluation.empty()) {
    throw UsageError("--evaluation-tokens needs --evaluate DATASET or --calibrate DATASET");
  }
  if (table.given("precision") && o.evaluation.empty()) {
    throw UsageError("--precision needs --evaluate DATASET or --calibrate DATASET");
  }
}

// Before anything takes time.
void check_output(const std::filesystem::path& output) {
  if (std::filesystem::exists(output)) {
    throw UsageError("{} exists: remove it or name another output", output.string());
  }
  const std::filesystem::path folder = output.has_parent_path() ? output.parent_path() : ".";
  if (::access((folder / ".").c_str(), W_OK | X_OK) != 0) {
    throw DataError("cannot create {}: {}", output.string(), std::strerror(errno));
  }
}

struct Sizes {
  int64_t weights = 0, bytes = 0;  // of the matrices
  int64_t fp32_bytes = 0, file_bytes = 0;
  double bits_a_weight() const {
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
  }
};

Sizes sizes_of(const std::vector<QuantizedBuffer>& matrices, const ParameterTable& table,
               const std::filesystem::path& file) {
  Sizes sizes;
  for (const QuantizedBuffer& buffer : matrices) {
    sizes.weights += buffer.matrix().outputs * buffer.matrix().inputs;
    sizes.bytes += buffer.matrix().size_bytes();
  }
  sizes.fp32_bytes = table.size() * size_bytes(DType::fp32);
  sizes.file_bytes = static_cast<int64_t>(std::filesystem::file_size(file));
  return sizes;
}

void print_json(const QuantizeOptions& o, const Sizes& sizes, DType precision,
                const std::optional<Comparison>& comparison) {
  nlohmann::ordered_json json{{"output", o.output.string()},
                              {"bits", o.quantization.bits},
                              {"group_size", o.quantization.group_size},
                              {"calibrated", o.quantization.calibrated},
                              {"quantized_weights", sizes.weights},
                              {"bits_a_weight", sizes.bits_a_weight()},
                              {"file_bytes", sizes.file_bytes},
                              {"fp32_bytes", sizes.fp32_bytes}};
  if (comparison) {
    json["precision"] = name(precision);
    json["tokens"] = comparison->tokens;
    json["perplexity_before"] = comparison->perplexity_before;
    json["perplexity_after"] = comparison->perplexity_after;
    json["kl_divergence"] = comparison->kl_divergence;
    json["top_1_agreement"] = comparison->top_1_agreement;
  }
  fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void print_table(const QuantizeOptions& o, const Sizes& sizes, DType precision,
                 const std::optional<Comparison>& comparison) {
  fmt::print("{}: {}, {:.0f} % of fp32\n", o.output.string(), size_text(sizes.file_bytes),
             100.0 * static_cast<double>(sizes.file_bytes) / static_cast<double>(sizes.fp32_bytes));
  fmt::print("{:<17}{} weights of {:.2f} bits with scales and zeros; the rest is fp32\n",
             "matrices", count_text(sizes.weights), sizes.bits_a_weight());
  if (!comparison) return;
  const Comparison& c = *comparison;
  fmt::print("{:<17}{:.3f} before ({}), {:.3f} after: {:+.2f} %\n", "perplexity",
             c.perplexity_before, name(precision), c.perplexity_after,
             100 * (c.perplexity_after / c.perplexity_before - 1));
  fmt::print("{:<17}{:.5f} nats a token\n", "KL divergence", c.kl_divergence);
  fmt::print("{:<17}{:.2f} %\n", "top-1 agreement", 100 * c.top_1_agreement);
  fmt::print("{:<17}{} (split validation)\n", "tokens", grouped(c.tokens));
}

// Of the checkpoint with the file made of it, which does not stay when one of them computes no
// numbers: it is of no use, and the same command would be refused because of it.
Comparison compare_output(const QuantizeOptions& o, const Checkpoint& checkpoint,
                          const Dataset& dataset, DType precision) {
  try {
    return compare(checkpoint.info().model, Weights(checkpoint, precision),
                   Weights(Checkpoint::open(o.output), precision), dataset.split("validation"),
                   o.evaluation_tokens);
  } catch (const DataError&) {
    std::error_code ignored;
    std::filesystem::remove(o.output, ignored);
    throw;
  }
}

Dataset open_dataset(const std::filesystem::path& folder, const Checkpoint& checkpoint,
                     const char* split) {
  Dataset dataset = Dataset::open(folder);
  dataset.split(split);
  check_same_tokenizer(checkpoint, dataset);
  return dataset;
}

}  // namespace

ExitCode run_quantize(const Arguments& arguments) {
  QuantizeOptions o;
  OptionTable table = options(o);
  if (wants_help(arguments)) return show_help(table, nullptr);
  table.parse(arguments);
  table.require("bits");
  table.require("output");
  if (o.evaluation.empty()) o.evaluation = o.calibration;
  refuse_contradictions(table, o);
  check_output(o.output);
  start_threads(o.threads, nullptr);
  const DType precision = resolve_precision(o.precision, fast_bf16(Device::cpu, nullptr));

  const Checkpoint checkpoint = Checkpoint::open(o.checkpoint);
  checkpoint.require_whole_weights("quantization");
  const ModelConfig& model = checkpoint.info().model;
  o.quantization.calibrated = !o.calibration.empty();
  validate(o.quantization, model);
  std::optional<Dataset> calibration, evaluation;
  if (!o.evaluation.empty()) evaluation = open_dataset(o.evaluation, checkpoint, "validation");
  std::vector<int32_t> tokens;
  if (o.quantization.calibrated) {
    calibration = open_dataset(o.calibration, checkpoint, "train");
    tokens =
        spread_windows(calibration->split("train"), model.context_length, o.calibration_tokens);
  }
  const auto matrices = quantize(checkpoint, o.quantization, tokens, [&](int64_t layer) {
    if (calibration) fmt::print(stderr, "layer {} of {}\n", layer + 1, model.num_layers);
  });
  write_quantized(checkpoint, o.quantization, matrices, o.output);

  std::optional<Comparison> comparison;
  if (evaluation) comparison = compare_output(o, checkpoint, *evaluation, precision);
  const Sizes sizes = sizes_of(matrices, checkpoint.table(), o.output);
  if (o.json) {
    print_json(o, sizes, precision, comparison);
  } else {
    print_table(o, sizes, precision, comparison);
  }
  return ExitCode::done;
}

}  // namespace lockstep::launch
