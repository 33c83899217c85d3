#include "data/prepare.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "launch/command.h"
#include "launch/progress_bar.h"
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
            "the dataset folder to make; one that exists must be empty");
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
  fmt::print("{}, from {} of text in {:.1f} s\n", config.output.string(), size_text(report.bytes),
             seconds);
  fmt::print("  {:<12}{:>12}{:>18}{:>18}{:>16}\n", "", "documents", "bytes", "tokens",
             "bytes a token");
  const auto split = [](const char* name, const PrepareReport::Split& s) {
    if (s.documents == 0) return;
    fmt::print("  {:<12}{:>12}{:>18}{:>18}{:>16.2f}\n", name, grouped(s.documents),
               grouped(s.bytes), grouped(s.tokens), s.bytes_per_token());
  };
  split("train", report.train);
  split("validation", report.validation);
  const auto row = [](const char* name, const std::string& text) {
    fmt::print("  {:<12}{}\n", name, text);
  };
  row("dropped", fmt::format("{} empty, {} duplicate documents", grouped(report.empty),
                             grouped(report.duplicate)));
  if (report.short_documents > 0) {
    row("kept short", fmt::format("{} documents of less than {} bytes",
                                  grouped(report.short_documents), kShortDocumentBytes));
  }
  row("vocabulary", fmt::format("{} tokens", grouped(report.vocab_size)));
  if (!report.split_by_document && report.validation.tokens > 0) {
    row("validation", "the end of the text (too few documents to set whole ones aside)");
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
  const auto start = std::chrono::steady_clock::now();
  ProgressBar bar;
  const PrepareReport report = prepare(
      config,
      [&](std::string_view phase, int64_t done, int64_t total) { bar.show(phase, done, total); });
  bar.clear();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  print_report(config, report, elapsed.count());
  return ExitCode::done;
}

}  // namespace lockstep::launch
