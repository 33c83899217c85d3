#include "inference/evaluate.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoints/checkpoint.h"
#include "comm/agreement.h"
#include "inference/weights.h"
#include "launch/command.h"
#include "launch/compute_options.h"
#include "launch/same_tokenizer.h"
#include "launch/text.h"

namespace lockstep::launch {
namespace {

struct EvaluateOptions {
  std::filesystem::path checkpoint, data;
  std::string split = "validation";
  bool json = false;
  ComputeOptions compute;
};

OptionTable options(EvaluateOptions& o) {
  OptionTable table("lockstep evaluate", "--checkpoint PATH --data DATASET [OPTION]...",
                    "Scores a model on every token of a split, each once. Under mpirun the work is "
                    "shared, and the\nfigures are the same for any number of workers.");
  table.group("Model and data");
  table.add("checkpoint", path(o.checkpoint, "PATH"),
            "a run folder, a step folder or an exported model.h5 (of a run: its newest good one)");
  table.add("data", path(o.data, "DATASET"), "dataset folder, made by 'lockstep prepare'");
  table.add("split", text(o.split, "NAME"), "train or validation (default validation)");
  table.group("Output");
  table.add("json", flag(o.json),
            "one JSON object: loss (nats a token), perplexity, bits_per_byte, tokens, bytes");
  add_compute_options(table, o.compute);
  return table;
}

// Windows of a forward pass: enough tokens to keep matrix products efficient.
constexpr int64_t kTokensAtOnce = 4096;

std::unique_ptr<Transformer> make_model(const Checkpoint& checkpoint, const Weights& weights,
                                        const Compute& compute) {
  Transformer::Options options;
  options.device = compute.device;
  options.precision = compute.precision;
  const int64_t length = checkpoint.info().model.context_length;
  options.micro_batch_size = std::max<int64_t>(1, kTokensAtOnce / length);
  options.training = false;
  return std::make_unique<Transformer>(checkpoint.info().model, options, weights.parameters());
}

void print_table(const EvaluateOptions& o, const Evaluation& evaluation, DType precision,
                 double seconds) {
  fmt::print("{:<15}{:.4f} nats a token\n", "loss", evaluation.loss);
  fmt::print("{:<15}{:.2f}\n", "perplexity", evaluation.perplexity);
  fmt::print("{:<15}{:.4f}\n", "bits a byte", evaluation.bits_per_byte);
  fmt::print("{:<15}{} ({} bytes of text, split {})\n", "tokens", grouped(evaluation.tokens),
             grouped(evaluation.bytes), o.split);
  const auto rate = static_cast<int64_t>(static_cast<double>(evaluation.tokens) / seconds);
  fmt::print(stderr, "[{}, {:.1f} s, {} tokens/s]\n", name(precision), seconds, grouped(rate));
}

}  // namespace

ExitCode run_evaluate(const Arguments& arguments, MpiSession* session) {
  EvaluateOptions o;
  OptionTable table = options(o);
  if (wants_help(arguments)) return show_help(table, session);
  run_together(session->world(), [&] {
    table.parse(arguments);
    table.require("checkpoint");
    table.require("data");
    check_device(o.compute.machine.device);
  });
  const Compute compute = start_compute(o.compute, session);
  std::optional<Dataset> dataset;
  std::optional<Weights> weights;
  std::unique_ptr<Transformer> model;
  run_together(session->world(), [&] {
    dataset.emplace(Dataset::open(o.data));
    dataset->split(o.split);
    const Checkpoint checkpoint = Checkpoint::open(o.checkpoint);
    check_same_tokenizer(checkpoint, *dataset);
    weights.emplace(checkpoint, compute.precision, compute.device);
    model = make_model(checkpoint, *weights, compute);
  });
  const auto start = std::chrono::steady_clock::now();
  const Evaluation evaluation = evaluate(*model, dataset->split(o.split), session->world());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  if (session->rank() != 0) return ExitCode::done;
  if (o.json) {
    fmt::print("{}\n", to_json(evaluation).dump());
  } else {
    print_table(o, evaluation, compute.precision, elapsed.count());
  }
  return ExitCode::done;
}

}  // namespace lockstep::launch
