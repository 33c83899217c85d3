#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "inference/generator.h"

// How generate shows what it writes.
namespace lockstep::launch {

// Where the time went, on standard error. The rate of memory is measured when this is made, for a
// second, which is no time of any text.
class StatisticsPrinter {
 public:
  explicit StatisticsPrinter(Device device);
  void print(const Completion& completion);

 private:
  const double memory_rate_;  // bytes a second
};

// One JSON object on one line, without its end: prompt, text, tokens, finish_reason, on request
// tokens_per_second, where they were asked for logprobs, with a draft how many tokens it proposed
// and how many were accepted, and of beam search beams: a list of text, tokens, finish_reason and
// score.
std::string completion_json(const std::string& prompt, const Completion& completion,
                            const Tokenizer& tokenizer, bool with_rate);

enum class OutputFormat { text, json };

// Shows the completions of requests that run together in the order of the requests, each as soon as
// those before it have ended. As text: the prompt and the text as it comes, on standard output, and
// a line about it on standard error. As JSON: completion_json, with the rate.
class CompletionOutput {
 public:
  CompletionOutput(OutputFormat format, const Tokenizer& tokenizer, StatisticsPrinter* statistics)
      : format_(format), tokenizer_(tokenizer), statistics_(statistics) {}

  // Runs the requests, whose on_text it sets. Nothing is shown when one of them does not do.
  void run(Generator& generator, std::vector<GenerationRequest> requests, const BatchLimits& limits,
           const std::function<bool()>& interrupted = nullptr);

 private:
  struct Pending {
    std::string text;  // that came while others were shown
    std::optional<Completion> completion;
  };
  void show_text(std::string_view piece);
  void show_ready();
  void show_end(const Completion& completion);

  const OutputFormat format_;
  const Tokenizer& tokenizer_;
  StatisticsPrinter* const statistics_;
  std::vector<GenerationRequest> requests_;
  std::vector<Pending> pending_;
  size_t shown_ = 0;    // requests that have ended on the screen; the next one's text is shown
  bool begun_ = false;  // the next one's prompt is shown
};

}  // namespace lockstep::launch
