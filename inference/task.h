#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "inference/bootstrap.h"
#include "inference/generator.h"

// Questions with known answers, scored as EleutherAI's lm-evaluation-harness (lm-eval) does.
namespace lockstep {

// multiple_choice: the likeliest choice after the context, by the sum of its tokens' logarithms
//                  (lm-eval: acc), and by that sum over the choice's length in characters
//                  (acc_norm)
// last_word:       whether greedy decoding writes the last word of a text, and its perplexity
//                  (LAMBADA; Paperno et al., 2016)
// exact_match:     whether the greedy continuation is the answer, spaces around both left out; a
//                  context loses its beginning where max_tokens would not fit behind it
enum class TaskKind { multiple_choice, last_word, exact_match };
std::string_view name(TaskKind kind);

struct TaskItem {
  std::string context;
  std::vector<std::string> continuations;  // what may follow it, with the space between
  std::vector<double> lengths;             // of the choices, in characters, without that space
  size_t answer = 0;                       // the right choice
  std::string expected;                    // exact_match
  SamplingOptions generation;              // exact_match
  std::string origin;                      // "task.jsonl:3"
};

struct Task {
  TaskKind kind = TaskKind::multiple_choice;
  std::vector<TaskItem> items;
};

// A file of JSON lines, all of one kind:
//   {"context": TEXT, "choices": [TEXT...], "answer": INDEX or TEXT, "delimiter": " "}
//   {"text": TEXT}
//   {"context": TEXT, "answer": TEXT, "stop": ["\n"], "max_tokens": 32}
// delimiter, stop and max_tokens have the defaults shown. Throws DataError, naming file, line and
// field.
Task read_task(const std::filesystem::path& file);

// A mean over the items.
struct Figure {
  double value = 0;
  std::optional<ConfidenceInterval> interval;  // 95 %, by bootstrap over items
};

struct TaskResult {
  TaskKind kind = TaskKind::multiple_choice;
  int64_t items = 0;
  Figure accuracy;
  std::optional<Figure> accuracy_norm;  // multiple_choice
  std::optional<Figure> perplexity;     // last_word: exp of the mean of -ln p(word)
};

// Collective: items are dealt to the workers, each is scored alone, and results are added in the
// order of the file: the same figures for any number of workers. `resamples` of the intervals; 0:
// none.
TaskResult score(Generator& generator, const Task& task, Communicator& communicator,
                 int64_t resamples);

nlohmann::json to_json(const TaskResult& result);

// Tokens of a context, and of what follows it: spaces at the end of the context go over to the
// continuation, both are encoded together, and the continuation is what comes after as many tokens
// as the context alone has. An empty context becomes the end-of-text token. (lm-eval:
// _encode_pair.)
std::pair<std::vector<int32_t>, std::vector<int32_t>> encode_pair(const Tokenizer& tokenizer,
                                                                  std::string context,
                                                                  std::string continuation);

}  // namespace lockstep
