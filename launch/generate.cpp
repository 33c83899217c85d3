#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <iterator>

#include "launch/command.h"
#include "launch/completions.h"
#include "launch/compute_options.h"
#include "launch/interactive.h"
#include "launch/machine.h"
#include "launch/requests.h"

namespace lockstep::launch {
namespace {

struct GenerateOptions {
  std::filesystem::path checkpoint, prompt_file;
  std::vector<std::string> prompts;
  bool interactive = false;
  RequestOptions request;
  int64_t batch_size = BatchLimits().batch_size;
  std::optional<double> kv_cache_gib;
  bool json = false, verbose = false;
  ComputeOptions compute;
};

OptionTable options(GenerateOptions& o) {
  OptionTable table("lockstep generate", "--checkpoint PATH [OPTION]...",
                    "Lets a model continue each prompt, and shows the text as it is written. "
                    "Without --prompt and\n--prompt-file the prompt is read from standard input.");
  table.group("Model");
  table.add("checkpoint", path(o.checkpoint, "PATH"),
            "a run folder, a step folder or an exported model.h5 (of a run: its newest good one)");
  table.group("Prompts");
  table.add("prompt", texts(o.prompts, "TEXT"), "text to continue; may be given several times");
  table.add("prompt-file", path(o.prompt_file, "FILE"),
            "a file with one prompt a line; .jsonl: one object a line, {\"prompt\": TEXT}, which "
            "may hold options of its own, as in \"top_k\": 5");
  table.add("interactive", flag(o.interactive), "type prompts at a terminal, one after the other");
  add_request_options(table, o.request);
  table.group("Batch");
  table.add(
      "batch-size", integer(o.batch_size, 1),
      "most prompts to work on at a time; the text of each is the same with any (default 16)");
  table.add(
      "kv-cache-memory", real(o.kv_cache_gib, kPositive, "GIB"),
      "most memory for the keys and values of their tokens; prompts wait for it (default: half "
      "of the memory that is free)");
  table.group("Output");
  table.add("json", flag(o.json),
            "one JSON object a prompt: prompt, text, tokens, finish_reason, tokens_per_second");
  add_logprobs_option(table, o.request);
  table.add("verbose", flag(o.verbose),
            "also where the time went: prompt, first token, further tokens, memory, KV cache");
  add_compute_options(table, o.compute);
  return table;
}

void refuse_contradictions(const OptionTable& table, const GenerateOptions& o) {
  if (o.interactive) {
    for (const char* other : {"prompt", "prompt-file", "json"}) {
      if (table.given(other)) {
        throw UsageError("--interactive contradicts --{}; leave one out", other);
      }
    }
    require_terminal();
  }
  if (table.given("logprobs") && !o.json) {
    throw UsageError("--logprobs is part of the JSON output: add --json");
  }
  validate(o.request.sampling);
}

std::string standard_input() {
  if (isatty(STDIN_FILENO) == 1) fmt::print(stderr, "Type the prompt; end it with Ctrl-D.\n");
  std::string prompt((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
  if (prompt.ends_with('\n')) prompt.pop_back();
  return prompt;
}

std::vector<Request> gather_requests(const GenerateOptions& o) {
  std::vector<Request> requests;
  for (const std::string& prompt : o.prompts) {
    requests.push_back({prompt, o.request, requests.size(), ""});
  }
  if (!o.prompt_file.empty()) {
    for (Request& request : read_requests(o.prompt_file, o.request, requests.size())) {
      requests.push_back(std::move(request));
    }
  }
  return requests;
}

BatchLimits limits(const GenerateOptions& o, Device device) {
  const int64_t half = device == Device::cpu ? this_machine().memory_free_bytes / 2
                                             : this_gpu(cuda_device()).memory_bytes / 2;
  const double given = o.kv_cache_gib.value_or(0) * 0x1p30;
  return {o.batch_size, o.kv_cache_gib ? static_cast<int64_t>(std::min(given, 0x1p62)) : half};
}

}  // namespace

ExitCode run_generate(const Arguments& arguments, MpiSession* session) {
  GenerateOptions o;
  OptionTable table = options(o);
  if (wants_help(arguments)) return show_help(table, session);
  table.parse(arguments);
  table.require("checkpoint");
  refuse_contradictions(table, o);
  check_device(o.compute.machine);
  std::vector<Request> requests = gather_requests(o);
  const Compute compute = start_compute(o.compute, nullptr);
  const Checkpoint checkpoint = Checkpoint::open(o.checkpoint);
  Generator generator(checkpoint, compute.precision, compute.device);
  const Tokenizer& tokenizer = generator.tokenizer();
  StatisticsPrinter statistics(compute.device);
  if (o.interactive) {
    run_interactive(generator, resolve({"", o.request, 0, ""}, tokenizer),
                    o.verbose ? &statistics : nullptr);
    return ExitCode::done;
  }
  if (requests.empty()) requests.push_back({standard_input(), o.request, 0, ""});
  std::vector<GenerationRequest> resolved;  // all, before the first takes time
  for (const Request& request : requests) {
    resolved.push_back({request.prompt, resolve(request, tokenizer), request.stream_index});
  }
  CompletionOutput(o.json ? OutputFormat::json : OutputFormat::text, tokenizer,
                   o.verbose ? &statistics : nullptr)
      .run(generator, std::move(resolved), limits(o, compute.device));
  return ExitCode::done;
}

}  // namespace lockstep::launch
