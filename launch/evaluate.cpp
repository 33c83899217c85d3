#include "inference/evaluate.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoints/checkpoint.h"
#include "comm/agreement.h"
#include "inference/task.h"
#include "inference/weights.h"
#include "launch/command.h"
#include "launch/compute_options.h"
#include "launch/same_tokenizer.h"
#include "launch/text.h"

namespace lockstep::launch {
namespace {

struct EvaluateOptions {
  std::filesystem::path checkpoint, data, task;
  std::string split = "validation";
  EvaluationOptions evaluation;
  bool json = false;
  ComputeOptions compute;
};

OptionTable options(EvaluateOptions& o) {
  OptionTable table("lockstep evaluate",
                    "--checkpoint PATH --data DATASET | --task FILE [OPTION]...",
                    "Scores a model on every token of a split, each once, or on questions with "
                    "known answers. Under\nmpirun the work is shared, and the figures are the same "
                    "for any number of workers.");
  table.group("Model and data");
  table.add("checkpoint", path(o.checkpoint, "PATH"),
            "a run folder, a step folder or an exported model.h5 (of a run: its newest good one)");
  table.add("data", path(o.data, "DATASET"), "dataset folder, made by 'lockstep prepare'");
  table.add("split", text(o.split, "NAME"), "train or validation (default validation)");
  table.add("stride", integer(o.evaluation.stride, 1),
            "tokens from a window to the next: each token is predicted from at least the context "
            "less N tokens, at a cost of context / N (default: the context)");
  table.add("task", path(o.task, "FILE"),
            "JSON lines with questions instead: multiple choice {\"context\", \"choices\", "
            "\"answer\"}, last word {\"text\"}, or exact match {\"context\", \"answer\"}");
  table.group("Output");
  table.add("bootstrap", integer(o.evaluation.resamples, 1, 1'000'000),
            "also 95 % intervals, from N draws of the windows or questions with replacement, as in "
            "1000");
  table.add("json", flag(o.json),
            "one JSON object: loss (nats a token), perplexity, bits_per_byte, tokens, bytes; of a "
            "task kind, items, accuracy and more");
  add_compute_options(table, o.compute);
  return table;
}

// Windows of a forward pass: enough tokens to keep matrix products efficient.
constexpr int64_t kTokensAtOnce = 4096;

void check_stride(int64_t stride, const Checkpoint& checkpoint) {
  const int64_t context = checkpoint.info().model.context_length;
  if (stride <= context) return;
  throw UsageError("--stride {} would leave out tokens: the model's context holds {}", stride,
                   context);
}

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

std::string interval_text(const std::optional<ConfidenceInterval>& interval) {
  if (!interval) return "";
  return fmt::format(" (95 %: {:.4f} to {:.4f})", interval->low, interval->high);
}

void print_table(const EvaluateOptions& o, const Evaluation& evaluation, DType precision,
                 double seconds) {
  fmt::print("{:<15}{:.4f} nats a token{}\n", "loss", evaluation.loss,
             interval_text(evaluation.loss_interval));
  fmt::print("{:<15}{:.2f}\n", "perplexity", evaluation.perplexity);
  fmt::print("{:<15}{:.4f}\n", "bits a byte", evaluation.bits_per_byte);
  fmt::print("{:<15}{} ({} bytes of text, split {})\n", "tokens", grouped(evaluation.tokens),
             grouped(evaluation.bytes), o.split);
  const auto rate = static_cast<int64_t>(static_cast<double>(evaluation.tokens) / seconds);
  fmt::print(stderr, "[{}, {:.1f} s, {} tokens/s]\n", name(precision), seconds, grouped(rate));
}

void print_figure(const char* subject, const Figure& figure) {
  fmt::print("{:<15}{:.4f}{}\n", subject, figure.value, interval_text(figure.interval));
}

void print_table(const TaskResult& result) {
  fmt::print("{:<15}{}\n", "kind", name(result.kind));
  fmt::print("{:<15}{}\n", "items", grouped(result.items));
  print_figure("accuracy", result.accuracy);
  if (result.accuracy_norm) print_figure("accuracy_norm", *result.accuracy_norm);
  if (result.perplexity) print_figure("perplexity", *result.perplexity);
}

void check_options(const OptionTable& table, const EvaluateOptions& o) {
  table.require("checkpoint");
  check_device(o.compute.machine);
  if (!table.given("task")) return table.require("data");
  for (const char* other : {"data", "split", "stride"}) {
    if (table.given(other)) {
      throw UsageError("--task contradicts --{}; leave one out", other);
    }
  }
}

void evaluate_split(const EvaluateOptions& o, const Compute& compute, MpiSession& session) {
  std::optional<Dataset> dataset;
  std::optional<Weights> weights;
  std::unique_ptr<Transformer> model;
  run_together(session.world(), [&] {
    dataset.emplace(Dataset::open(o.data));
    dataset->split(o.split);
    const Checkpoint checkpoint = Checkpoint::open(o.checkpoint);
    check_same_tokenizer(checkpoint, *dataset);
    check_stride(o.evaluation.stride, checkpoint);
    weights.emplace(checkpoint, compute.precision, compute.device);
    model = make_model(checkpoint, *weights, compute);
  });
  const auto start = std::chrono::steady_clock::now();
  const Evaluation evaluation =
      evaluate(*model, dataset->split(o.split), session.world(), o.evaluation);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  run_together(session.world(), [&] {
    if (std::isfinite(evaluation.loss)) return;
    throw DataError("{}: the loss is {}: the weights are damaged or the training diverged",
                    o.checkpoint.string(), evaluation.loss);
  });
  if (session.rank() != 0) return;
  if (o.json) {
    fmt::print("{}\n", to_json(evaluation).dump());
  } else {
    print_table(o, evaluation, compute.precision, elapsed.count());
  }
}

void evaluate_task(const EvaluateOptions& o, const Compute& compute, MpiSession& session) {
  Task task;
  std::unique_ptr<Generator> generator;
  run_together(session.world(), [&] {
    task = read_task(o.task);
    const Checkpoint checkpoint = Checkpoint::open(o.checkpoint);
    generator = std::make_unique<Generator>(checkpoint, compute.precision, compute.device);
  });
  const TaskResult result = score(*generator, task, session.world(), o.evaluation.resamples);
  if (session.rank() != 0) return;
  if (o.json) {
    fmt::print("{}\n", to_json(result).dump());
  } else {
    print_table(result);
  }
}

}  // namespace

ExitCode run_evaluate(const Arguments& arguments, MpiSession* session) {
  EvaluateOptions o;
  OptionTable table = options(o);
  if (wants_help(arguments)) return show_help(table, session);
  run_together(session->world(), [&] {
    table.parse(arguments);
    check_options(table, o);
  });
  const Compute compute = start_compute(o.compute, session);
  if (table.given("task")) {
    evaluate_task(o, compute, *session);
  } else {
    evaluate_split(o, compute, *session);
  }
  return ExitCode::done;
}

}  // namespace lockstep::launch
