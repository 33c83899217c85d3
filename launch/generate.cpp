#include <unistd.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/file.h"
#include "inference/generator.h"
#include "launch/command.h"
#include "launch/compute_options.h"

namespace lockstep::launch {
namespace {

struct GenerateOptions {
  std::filesystem::path checkpoint, prompt_file;
  std::vector<std::string> prompts;
  SamplingOptions sampling;
  bool json = false;
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
  table.add("prompt-file", path(o.prompt_file, "FILE"), "a file with one prompt a line");
  table.group("Sampling");
  SamplingOptions& s = o.sampling;
  table.add("max-tokens", integer(s.max_tokens, 1), "most tokens to write a prompt (default 128)");
  table.add("greedy", flag(s.greedy), "always take the likeliest token");
  table.add("temperature", real(s.temperature, kNotNegative),
            "below 1 prefers likely tokens, above 1 evens them out; 0: greedy (default 1)");
  table.add("top-k", integer(s.top_k, 0), "sample from the K likeliest tokens; 0: all (default 0)");
  table.add("top-p", real(s.top_p, {0, 1, true, false}, "P"),
            "sample from the likeliest tokens that together have probability P (default 1)");
  table.add("seed", seed(s.seed), "of the sampling; the same seed gives the same text (default 0)");
  table.add("stop", texts(s.stop, "TEXT"), "end before this text; may be given several times");
  table.group("Output");
  table.add("json", flag(o.json),
            "one JSON object a prompt: prompt, text, tokens, finish_reason, tokens_per_second");
  add_compute_options(table, o.compute);
  return table;
}

std::vector<std::string> lines_of(const std::filesystem::path& file) {
  const std::string content = read_file(file);
  std::vector<std::string> lines;
  std::istringstream in(content);
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) lines.push_back(line);
  }
  if (lines.empty()) throw DataError("{} holds no prompt: one a line is needed", file.string());
  return lines;
}

std::string standard_input() {
  if (isatty(STDIN_FILENO) == 1) fmt::print(stderr, "Type the prompt; end it with Ctrl-D.\n");
  std::string prompt((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
  if (prompt.ends_with('\n')) prompt.pop_back();
  return prompt;
}

std::vector<std::string> gather_prompts(const GenerateOptions& o) {
  std::vector<std::string> prompts = o.prompts;
  if (!o.prompt_file.empty()) {
    for (auto& line : lines_of(o.prompt_file)) prompts.push_back(std::move(line));
  }
  if (prompts.empty()) prompts.push_back(standard_input());
  return prompts;
}

double tokens_per_second(const Completion& completion) {
  return completion.seconds > 0 ? static_cast<double>(completion.tokens.size()) / completion.seconds
                                : 0;
}

void print_json(const std::string& prompt, const Completion& completion) {
  const nlohmann::ordered_json object = {{"prompt", prompt},
                                         {"text", completion.text},
                                         {"tokens", completion.tokens},
                                         {"finish_reason", name(completion.finish_reason)},
                                         {"tokens_per_second", tokens_per_second(completion)}};
  // Bytes that are not UTF-8 become U+FFFD: JSON has no other way.
  fmt::print("{}\n", object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  std::fflush(stdout);
}

// The prompt, then the text as it comes. Nothing is shown of a prompt that does not fit.
void stream(Generator& generator, const std::string& prompt, const SamplingOptions& sampling,
            uint64_t index) {
  bool begun = false;
  const auto show = [&](std::string_view piece) {
    if (!begun) {
      const bool terminal = isatty(STDOUT_FILENO) == 1;
      fmt::print("{}{}{}{}", index > 0 ? "\n" : "", terminal ? "\x1b[1m" : "", prompt,
                 terminal ? "\x1b[0m" : "");
    }
    begun = true;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  const Completion completion = generator.generate(prompt, sampling, index, show);
  show("\n");
  fmt::print(stderr, "[{} tokens, {:.1f} tokens/s, ended by {}]\n", completion.tokens.size(),
             tokens_per_second(completion), name(completion.finish_reason));
}

}  // namespace

ExitCode run_generate(const Arguments& arguments, MpiSession* session) {
  GenerateOptions o;
  OptionTable table = options(o);
  if (wants_help(arguments)) return show_help(table, session);
  table.parse(arguments);
  table.require("checkpoint");
  const Compute compute = start_compute(o.compute, nullptr);
  const Checkpoint checkpoint = Checkpoint::open(o.checkpoint);
  Generator generator(checkpoint, compute.precision, compute.device);
  const auto prompts = gather_prompts(o);
  for (size_t i = 0; i < prompts.size(); i++) {
    if (!o.json) {
      stream(generator, prompts[i], o.sampling, i);
    } else {
      print_json(prompts[i], generator.generate(prompts[i], o.sampling, i, [](auto) {}));
    }
  }
  return ExitCode::done;
}

}  // namespace lockstep::launch
