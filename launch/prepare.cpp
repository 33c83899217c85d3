#include "data/prepare.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "launch/command.h"
#include "launch/progress_bar.h"
#include "launch/signals.h"
#include "launch/text.h"

namespace lockstep::launch {
namespace {

OptionTable options(PrepareConfig& config) {
  OptionTable table("lockstep prepare", "--input PATH... --output DATASET [OPTION]...",
                    "Turns text into a dataset folder: trains or loads a tokenizer, encodes every\n"
                    "document, and sets a share of the text aside for validation. Streams: memory\n"
                    "does not grow with the input.");
  table.group("Input and output");
  table.add("input", paths(config.inputs, "PATH..."),
            "text files, folders of them, JSON lines (.jsonl); each also gzip-compressed");
  table.add("output", path(config.output, "DATASET"),
            "the dataset folder to make; must not exist or be empty");
  table.add("field", text(config.field, "NAME"),
            "the field of a JSON line that holds the text (default text)");
  table.add("validation-fraction", real(config.validation_fraction, {0, 1, false, true}),
            "share of the text set aside for validation, from 0 to below 1 (default 0.05)");
  table.add("seed", seed(config.seed), "of the choice of validation documents (default 0)");
  table.group("Tokenizer");
  table.add("tokenizer", text(config.tokenizer, "train|bytes|PATH"),
            "train: byte-level BPE, trained on the input (default); bytes: one token a byte; "
            "PATH: a tokenizer.json, a folder with one or with vocab.json and merges.txt, or a "
            "tiktoken rank file");
  table.add("vocab-size", integer(config.vocab_size, 257, 1 << 24),
            "tokens of a tokenizer trained here (default 8192)");
  table.group("Machine");
  table.add("threads", integer(config.threads, 1, 4096), "threads (default: one a core)");
  return table;
}

void print_report(const PrepareConfig& config, const PrepareReport& report, double seconds) {
  const auto row = [](const char* name, const PrepareReport::Split& split) {
    if (split.documents == 0) return;
    fmt::print("  {:<12}{:>14} documents {:>16} bytes {:>16} tokens   {:.2f} bytes a token\n", name,
               grouped(split.documents), grouped(split.bytes), grouped(split.tokens),
               split.bytes_per_token());
  };
  fmt::print("{}, from {} of text in {:.1f} s\n", config.output.string(), size_text(report.bytes),
             seconds);
  row("train", report.train);
  row("validation", report.validation);
  fmt::print("  {:<12}{:>14} empty, {} duplicate documents\n", "dropped", grouped(report.empty),
             grouped(report.duplicate));
  if (report.short_documents > 0) {
    fmt::print("  {:<12}{:>14} documents of less than {} bytes\n", "kept short",
               grouped(report.short_documents), kShortDocumentBytes);
  }
  fmt::print("  {:<12}{:>14} tokens\n", "vocabulary", grouped(report.vocab_size));
  if (!report.split_by_document && report.validation.tokens > 0) {
    fmt::print(
        "  (too few documents to set whole ones aside: validation is the end of the text)\n");
  }
}

struct Stopped {};

// The unfinished dataset is removed before a signal ends the program.
PrepareReport prepare_unless_stopped(const PrepareConfig& config) {
  ProgressBar bar;
  try {
    return prepare(config, [&](std::string_view phase, int64_t done, int64_t total) {
      if (stop_signal() != 0) throw Stopped();
      bar.show(phase, done, total);
    });
  } catch (const Stopped&) {
    bar.clear();
    fmt::print(stderr, "lockstep prepare: stopped; nothing is left of {}\n",
               config.output.string());
    end_by_signal(stop_signal());
  }
}

}  // namespace

ExitCode run_prepare(const Arguments& arguments, MpiSession* session) {
  PrepareConfig config;
  OptionTable table = options(config);
  if (wants_help(arguments)) return show_help(table, session);
  table.parse(arguments);
  table.require("input");
  table.require("output");
  stop_on_signals();
  const auto start = std::chrono::steady_clock::now();
  const PrepareReport report = prepare_unless_stopped(config);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  print_report(config, report, elapsed.count());
  return ExitCode::done;
}

}  // namespace lockstep::launch
