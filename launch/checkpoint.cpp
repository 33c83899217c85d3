#include "checkpoints/checkpoint.h"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "launch/command.h"
#include "launch/text.h"
#include "trainer/metrics.h"

namespace lockstep::launch {
namespace {

using std::filesystem::path;

int64_t bytes_on_disk(const path& p) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(p, ignored)) {
    const auto size = std::filesystem::file_size(p, ignored);
    return ignored ? 0 : static_cast<int64_t>(size);
  }
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(p, ignored)) {
    if (entry.is_regular_file(ignored)) bytes += static_cast<int64_t>(entry.file_size(ignored));
  }
  return bytes;
}

// loss and validation_loss of each step, as the run noted them.
struct Losses {
  std::string train = "-", validation = "-";
};
std::map<int64_t, Losses> losses_by_step(const path& run) {
  std::map<int64_t, Losses> losses;
  for_each_step(run / "metrics.jsonl",
                [&](int64_t step, const nlohmann::json& object, const std::string&) {
                  const auto number = [&](const char* key, std::string& text) {
                    const auto it = object.find(key);
                    if (it == object.end() || !it->is_number()) return;
                    text = fmt::format("{:.4f}", it->get<double>());
                  };
                  number("loss", losses[step].train);
                  number("validation_loss", losses[step].validation);
                });
  return losses;
}

ExitCode list(const path& run) {
  if (!std::filesystem::is_directory(run)) {
    throw DataError("{} is not a run folder; 'list' shows the checkpoints of one", run.string());
  }
  const auto steps = list_checkpoints(run);
  if (steps.empty()) throw DataError("{} holds no checkpoint", run.string());
  const auto losses = losses_by_step(run);
  fmt::print("{:>10}  {:>10}  {:>15}  {:>10}  {:>12}  {}\n", "step", "loss", "validation loss",
             "size", "written", "folder");
  for (const int64_t step : steps) {
    const path folder = checkpoint_folder(run, step);
    const auto it = losses.find(step);
    const Losses loss = it == losses.end() ? Losses() : it->second;
    fmt::print("{:>10}  {:>10}  {:>15}  {:>10}  {:>12}  {}\n", step, loss.train, loss.validation,
               size_text(bytes_on_disk(folder)), age_text(folder), folder.string());
  }
  return ExitCode::done;
}

void print_settings(const char* caption, const nlohmann::json& settings) {
  if (settings.empty()) return;
  fmt::print("\n{}\n", caption);
  for (const auto& [key, value] : settings.items()) {
    fmt::print("  {:<24}{}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
  }
}

ExitCode inspect(const path& where) {
  const Checkpoint checkpoint = Checkpoint::open(where);
  const CheckpointInfo& info = checkpoint.info();
  fmt::print("{}\n", checkpoint.path().string());
  fmt::print("  {:<24}{}\n", "step", info.step);
  fmt::print("  {:<24}{}\n", "parameters", count_text(checkpoint.table().size()));
  fmt::print("  {:<24}{}\n", "optimizer state",
             checkpoint.has_optimizer_state() ? "yes" : "no (weights only)");
  fmt::print("  {:<24}{}, written {}\n", "on disk", size_text(bytes_on_disk(checkpoint.path())),
             age_text(checkpoint.path()));
  const Tokenizer tokenizer = Tokenizer::from_json(info.tokenizer_json);
  fmt::print("  {:<24}{} tokens, end of text {}\n", "tokenizer", tokenizer.vocab_size(),
             tokenizer.end_of_text() ? std::to_string(*tokenizer.end_of_text()) : "none");
  if (info.quantization) {
    fmt::print("  {:<24}{} bits in groups of {}, {}\n", "quantized", info.quantization->bits,
               info.quantization->group_size,
               info.quantization->calibrated ? "calibrated" : "each weight rounded by itself");
  }
  print_settings("model", to_json(info.model));
  print_settings("state of the training", info.trainer_state);
  print_settings("options", info.run_config);
  fmt::print("\ntensors\n");
  for (const Parameter& parameter : checkpoint.table().parameters()) {
    const bool quantized = info.quantization && is_quantized(parameter);
    fmt::print("  {:<44}{:<16}{}\n", parameter.name, parameter.shape.to_string(),
               quantized         ? fmt::format("{} bits", info.quantization->bits)
               : parameter.decay ? "weight decay"
                                 : "");
  }
  return ExitCode::done;
}

ExitCode verify(const path& where) {
  if (!std::filesystem::exists(where)) {
    throw DataError("there is no '{}': a run folder, a step folder or a model.h5 is needed",
                    where.string());
  }
  const auto faults = verify_checkpoint(where);
  if (faults.empty()) {
    fmt::print("{}: good\n", where.string());
    return ExitCode::done;
  }
  for (const auto& fault : faults) fmt::print("{}\n", fault);
  throw DataError("{}: damaged ({} fault{}); use another checkpoint of the run", where.string(),
                  faults.size(), faults.size() == 1 ? "" : "s");
}

// Differences shown before the rest is only counted.
constexpr size_t kShownDifferences = 10;

ExitCode diff(const path& first, const path& second, bool all) {
  const Checkpoint a = Checkpoint::open(first), b = Checkpoint::open(second);
  const auto entries = diff_checkpoints(a, b, all);
  size_t different = 0, shown = 0;
  for (const TensorDifference& entry : entries) {
    if (!entry.equal) different++;
    if (!all && shown == kShownDifferences) continue;
    shown++;
    if (entry.equal) {
      fmt::print("  equal      {}\n", entry.name);
    } else if (!entry.note.empty()) {
      fmt::print("  different  {}: {}\n", entry.name, entry.note);
    } else {
      fmt::print("  different  {}: by up to {:.3g}, first at element {}\n", entry.name,
                 entry.largest, entry.first_index);
    }
  }
  if (!all && different > shown) fmt::print("  ... and {} more\n", different - shown);
  const auto paths = fmt::format("{} and {}", a.path().string(), b.path().string());
  if (different == 0) {
    fmt::print("{}: the same, bit for bit\n", paths);
    return ExitCode::done;
  }
  fmt::print("{}: {} difference{}\n", paths, different, different == 1 ? "" : "s");
  return ExitCode::difference;
}

ExitCode export_to(const path& from, const std::string& format, const path& output) {
  const Checkpoint checkpoint = Checkpoint::open(from);
  if (format == "h5") {
    export_h5(checkpoint, output);
  } else {
    export_hugging_face(checkpoint, output);
  }
  fmt::print("{}: step {} of {}, {}\n", output.string(), checkpoint.info().step,
             checkpoint.path().string(), size_text(bytes_on_disk(output)));
  return ExitCode::done;
}

ExitCode import_from(const path& folder, const path& output) {
  const Tokenizer tokenizer = Tokenizer::load(folder);
  import_hugging_face(folder, tokenizer.to_json(), output);
  const Checkpoint checkpoint = Checkpoint::open(output);
  fmt::print("{}: {}, {} parameters, {}\n", output.string(), name(checkpoint.info().model.family),
             count_text(checkpoint.table().size()), size_text(bytes_on_disk(output)));
  return ExitCode::done;
}

const char* const kOverview =
    "Usage: lockstep checkpoint list RUN\n"
    "       lockstep checkpoint inspect PATH\n"
    "       lockstep checkpoint verify PATH\n"
    "       lockstep checkpoint verify --replay A B [--data DATASET] [--threads N]\n"
    "       lockstep checkpoint diff A B [--all]\n"
    "       lockstep checkpoint export PATH --format h5|hf --output OUT\n"
    "       lockstep checkpoint import HF_FOLDER --output OUT\n"
    "       lockstep checkpoint quantize PATH --bits 8|4 --output OUT [OPTION]...\n"
    "\n"
    "  list     the checkpoints of a run: step, losses, size, age\n"
    "  inspect  what a checkpoint holds: model, state, options, tensors\n"
    "  verify   read every byte and check sizes and checksums; exit code 3 when damaged\n"
    "           --replay: train again from checkpoint A to the step of B and compare every bit, "
    "under\n"
    "           mpirun on any workers that the run could have; exit code 1 when they differ\n"
    "  diff     compare two bit for bit; exit code 1 when they differ\n"
    "  export   one self-contained model.h5, or a Hugging Face folder\n"
    "  import   a Hugging Face folder (GPT-2 or Llama architecture) as model.h5\n"
    "  quantize weights of 8 or 4 bits, for generate and evaluate; see quantize --help\n"
    "\n"
    "A PATH is a run folder (its newest good checkpoint), a step folder, or an exported "
    "model.h5.\n";

ExitCode run_action(const std::string& action, const Arguments& arguments) {
  const std::string command = "lockstep checkpoint " + action;
  path a, b, output;
  if (action == "list" || action == "inspect" || action == "verify") {
    OptionTable table(command, action == "list" ? "RUN" : "PATH", "");
    table.positional(action == "list" ? "RUN" : "PATH", a);
    table.parse(arguments);
    return action == "list" ? list(a) : action == "inspect" ? inspect(a) : verify(a);
  }
  if (action == "diff") {
    bool all = false;
    OptionTable table(command, "A B [--all]", "");
    table.positional("A", a);
    table.positional("B", b);
    table.group("Output");
    table.add("all", flag(all), "show every tensor, equal ones too");
    table.parse(arguments);
    return diff(a, b, all);
  }
  if (action == "quantize") return run_quantize(arguments);
  const bool exports = action == "export";
  std::string format;
  OptionTable table(command,
                    exports ? "PATH --format h5|hf --output OUT" : "HF_FOLDER --output OUT", "");
  table.positional(exports ? "PATH" : "HF_FOLDER", a);
  table.group("Output");
  table.add("output", lockstep::launch::path(output, "OUT"), "the file or folder to make");
  if (exports) {
    table.add("format", choice(format, {{"h5", "h5"}, {"hf", "hf"}}, "h5|hf"),
              "what to make (h5: one file; hf: a Hugging Face folder)");
  }
  table.parse(arguments);
  table.require("output");
  if (!exports) return import_from(a, output);
  table.require("format");
  return export_to(a, format, output);
}

}  // namespace

bool checkpoint_is_collective(const Arguments& arguments) {
  return !arguments.empty() && arguments.front() == "verify" &&
         std::find(arguments.begin(), arguments.end(), "--replay") != arguments.end();
}

ExitCode run_checkpoint(const Arguments& arguments, MpiSession* session) {
  const bool quantizes = !arguments.empty() && arguments.front() == "quantize";
  if (wants_help(arguments) && !quantizes) {
    if (first_worker(session)) fmt::print("{}", kOverview);
    return ExitCode::done;
  }
  if (arguments.empty()) {
    fmt::print(stderr, "{}", kOverview);
    return ExitCode::usage;
  }
  const std::vector<std::string> actions{"list",   "inspect", "verify",  "diff",
                                         "export", "import",  "quantize"};
  const std::string& action = arguments.front();
  if (std::find(actions.begin(), actions.end(), action) == actions.end()) {
    const auto near = nearest(action, actions);
    throw UsageError("unknown action '{}'; {}", action,
                     near ? fmt::format("did you mean {}?", *near)
                          : fmt::format("there are {}", fmt::join(actions, ", ")));
  }
  const Arguments rest(arguments.begin() + 1, arguments.end());
  if (checkpoint_is_collective(arguments)) return run_replay(rest, *session);
  return run_action(action, rest);
}

}  // namespace lockstep::launch
