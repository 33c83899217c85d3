#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "inference/generator.h"

// How generate shows what it writes.
namespace lockstep::launch {

// The prompt and the text as it comes, on standard output, and a line about it on standard error.
// Nothing is shown of a prompt that does not fit.
Completion show_completion(Generator& generator, const std::string& prompt,
                           const SamplingOptions& options, uint64_t stream_index,
                           const std::function<bool()>& interrupted = nullptr);

// One JSON object on a line: prompt, text, tokens, finish_reason, tokens_per_second, and, where
// they were asked for, logprobs.
void print_json(const std::string& prompt, const Completion& completion,
                const Tokenizer& tokenizer);

// Where the time went, on standard error. The rate of memory is measured when it is first needed.
class StatisticsPrinter {
 public:
  explicit StatisticsPrinter(Device device) : device_(device) {}
  void print(const Completion& completion);

 private:
  const Device device_;
  std::optional<double> memory_rate_;  // bytes a second
};

}  // namespace lockstep::launch
