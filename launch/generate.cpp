#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <initializer_list>
#include <iostream>
#include <iterator>
#include <span>

#include "data/shard.h"
#include "launch/command.h"
#include "launch/completions.h"
#include "launch/compute_options.h"
#include "launch/file_generation.h"
#include "launch/interactive.h"
#include "launch/machine.h"
#include "launch/requests.h"

namespace lockstep::launch {
namespace {

struct GenerateOptions {
  std::filesystem::path checkpoint, draft, prompt_file, output;
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
                    "Without --prompt and\n--prompt-file the prompt is read from standard input. "
                    "Under mpirun workers share the\nprompts (--output).");
  table.group("Model");
  table.add("checkpoint", path(o.checkpoint, "PATH"),
            "a run folder, a step folder or an exported model.h5 (of a run: its newest good one)");
  table.add("draft", path(o.draft, "CHECKPOINT|prompt-lookup"),
            "a smaller model of the same tokenizer, or what stands in the text already, proposes "
            "tokens, several of which one pass of the model checks: faster, the same distribution "
            "of texts, with --greedy the same text");
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
  table.add("kv-cache-memory", real(o.kv_cache_gib, kPositive, "GIB"),
            "most memory of a worker for the keys and values of their tokens; prompts wait for it "
            "(default: half of the memory that is free, divided among the workers of a host)");
  table.group("Output");
  table.add("output", path(o.output, "FILE"),
            "write one JSON object a prompt into FILE, in the order of the prompts; started again, "
            "it goes on with those that are missing");
  table.add("json", flag(o.json),
            "one JSON object a prompt: prompt, text, tokens, finish_reason, tokens_per_second");
  add_logprobs_option(table, o.request);
  table.add("verbose", flag(o.verbose),
            "also where the time went: prompt, first token, further tokens, memory, KV cache");
  add_compute_options(table, o.compute);
  return table;
}

void refuse_both(const OptionTable& table, const char* one,
                 std::initializer_list<const char*> all) {
  for (const char* other : all) {
    if (table.given(one) && table.given(other)) {
      throw UsageError("--{} contradicts --{}; leave one out", one, other);
    }
  }
}

// Nothing else shows them. `origin`: where the options stand, to precede an error.
void check_logprobs_are_shown(const GenerateOptions& o, const RequestOptions& request,
                              const std::string& origin) {
  if (!request.sampling.logprobs || o.json || !o.output.empty()) return;
  throw UsageError("{}--logprobs is part of the JSON output: add --json or --output FILE", origin);
}

void refuse_contradictions(const OptionTable& table, const GenerateOptions& o, int workers) {
  refuse_both(table, "interactive", {"prompt", "prompt-file", "batch-size", "output", "json"});
  refuse_both(table, "output", {"json", "verbose"});
  if (o.interactive) require_terminal();
  if (workers > 1 && o.output.empty()) {
    throw UsageError(
        "{} workers need a file to write to: add --output FILE, or start it without mpirun",
        workers);
  }
  if (!o.output.empty() && o.prompts.empty() && o.prompt_file.empty()) {
    throw UsageError("--output needs prompts by --prompt-file FILE or --prompt TEXT");
  }
  check_logprobs_are_shown(o, o.request, "");
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
      check_logprobs_are_shown(o, request.options, request.origin);
      requests.push_back(std::move(request));
    }
  }
  return requests;
}

constexpr const char* kPromptLookup = "prompt-lookup";

// The model that --draft names.
std::optional<Checkpoint> open_draft(const std::filesystem::path& path) {
  if (path.empty() || path == kPromptLookup) return std::nullopt;
  if (std::error_code error; !std::filesystem::exists(path, error)) {
    throw DataError(
        "--draft: there is no '{}': {}, a run folder, a step folder or a model.h5 is needed",
        path.string(), kPromptLookup);
  }
  return Checkpoint::open(path);
}

void add_draft(Generator& generator, const GenerateOptions& o,
               const std::optional<Checkpoint>& draft) {
  if (o.draft == kPromptLookup) generator.draft_by_prompt_lookup();
  if (!draft) return;
  generator.draft_with(*draft);
  const int64_t context = draft->info().model.context_length;
  if (context >= generator.config().context_length) return;
  spdlog::info("the context of the draft holds {} tokens: nothing is drafted after them", context);
}

// Once the weights are there. The workers of a host share its memory.
BatchLimits limits(const GenerateOptions& o, Device device, int workers_of_host) {
  const int64_t half = device == Device::cpu
                           ? this_machine().memory_free_bytes / 2 / workers_of_host
                           : free_gpu_memory() / 2;
  const double given = o.kv_cache_gib.value_or(0) * 0x1p30;
  return {o.batch_size, o.kv_cache_gib ? static_cast<int64_t>(std::min(given, 0x1p62)) : half};
}

// What the prompts are, and the options that they have of their own.
std::string described(const std::vector<Request>& requests, const RequestOptions& defaults) {
  const auto common = values(defaults);
  const auto lacks = [](const auto& all, const auto& one) {
    return std::find(all.begin(), all.end(), one) == all.end();
  };
  std::string text;
  const auto add = [&](const std::string& part) { text += part + '\0'; };
  for (const Request& request : requests) {
    add(request.prompt);
    add(std::to_string(request.stream_index));
    if (request.origin.empty()) continue;
    const auto own = values(request.options);
    for (const auto& value : own) {
      if (lacks(common, value)) add(value.first), add(value.second);
    }
    for (const auto& value : common) {
      if (lacks(own, value)) add(value.first);
    }
  }
  return fmt::format("{} with XXH3 {}", requests.size(), xxh3_hex(std::as_bytes(std::span(text))));
}

// What the completions depend on: not where and by how many workers they are computed.
Work work_of(const GenerateOptions& o, const std::vector<Request>& requests,
             const Checkpoint& checkpoint, const std::optional<Checkpoint>& draft,
             const Compute& compute) {
  Work work{checkpoint.path(),
            {{"prompts", described(requests, o.request)},
             {"checkpoint", fmt::format("{:016x}", checkpoint.seal())},
             {"device", compute.device == Device::cpu ? "cpu" : "cuda"},
             {"precision", std::string(name(compute.precision))}}};
  if (!o.draft.empty()) {
    work.values.emplace_back("draft",
                             draft ? fmt::format("{:016x}", draft->seal()) : o.draft.string());
  }
  const auto options = values(o.request);
  work.values.insert(work.values.end(), options.begin(), options.end());
  return work;
}

}  // namespace

bool generate_is_collective(const Arguments&) { return MpiSession::under_launcher(); }

bool generate_stops(const Arguments& arguments) {
  return std::any_of(arguments.begin(), arguments.end(), [](const std::string& argument) {
    return argument == "--output" || argument.starts_with("--output=");
  });
}

ExitCode run_generate(const Arguments& arguments, MpiSession* session) {
  GenerateOptions o;
  OptionTable table = options(o);
  if (wants_help(arguments)) return show_help(table, session);
  std::vector<Request> requests;
  on_every_worker(session, [&] {
    table.parse(arguments);
    table.require("checkpoint");
    refuse_contradictions(table, o, session == nullptr ? 1 : session->size());
    check_device(o.compute.machine);
    requests = gather_requests(o);
  });
  std::optional<Interrupts> interrupts;
  if (o.interactive) interrupts.emplace();
  const Compute compute = start_compute(o.compute, session);
  const Checkpoint checkpoint = Checkpoint::open(o.checkpoint);
  const std::optional<Checkpoint> draft = open_draft(o.draft);
  std::optional<FileGeneration> file;
  if (!o.output.empty()) {
    file.emplace(o.output, work_of(o, requests, checkpoint, draft, compute), requests.size(),
                 session);
    if (file->whole()) return ExitCode::done;
  }
  Generator generator(checkpoint, compute.precision, compute.device);
  add_draft(generator, o, draft);
  const Tokenizer& tokenizer = generator.tokenizer();
  std::optional<StatisticsPrinter> statistics;
  if (o.verbose) statistics.emplace(compute.device);
  const BatchLimits batch = limits(o, compute.device, session ? session->local_size() : 1);
  if (o.interactive) {
    run_interactive(generator, resolve({"", o.request, 0, ""}, tokenizer), batch,
                    statistics ? &*statistics : nullptr, *interrupts);
    return ExitCode::done;
  }
  if (requests.empty()) requests.push_back({standard_input(), o.request, 0, ""});
  std::vector<GenerationRequest> resolved;  // all, before the first takes time
  for (const Request& request : requests) {
    resolved.push_back({.prompt = request.prompt,
                        .options = resolve(request, tokenizer),
                        .stream_index = request.stream_index,
                        .origin = request.origin});
  }
  if (file) return file->run(generator, resolved, batch);
  CompletionOutput(o.json ? OutputFormat::json : OutputFormat::text, tokenizer,
                   statistics ? &*statistics : nullptr)
      .run(generator, std::move(resolved), batch);
  return ExitCode::done;
}

}  // namespace lockstep::launch
