#include "inference/task.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "comm/agreement.h"
#include "core/check.h"
#include "core/file.h"

namespace lockstep {

using nlohmann::json;

std::string_view name(TaskKind kind) {
  switch (kind) {
    case TaskKind::multiple_choice:
      return "multiple_choice";
    case TaskKind::last_word:
      return "last_word";
    case TaskKind::exact_match:
      return "exact_match";
  }
  CHECK(false);
}

namespace {

constexpr const char* kSpaces = " \t\n\r\f\v";

// One line's object, and errors that name line and field.
class Fields {
 public:
  Fields(const std::string& line, std::string origin)
      : object_(json::parse(line, nullptr, false)), origin_(std::move(origin)) {
    if (object_.is_object()) return;
    throw DataError("{}: a JSON object is needed, found '{}'", origin_, line.substr(0, 60));
  }

  bool has(const char* field) const { return object_.contains(field); }
  const json& at(const char* field) const {
    if (!has(field)) throw DataError("{}: \"{}\" is missing", origin_, field);
    return object_.at(field);
  }
  [[noreturn]] void refuse(const char* field, const std::string& needed) const {
    throw DataError("{}: \"{}\": {} is needed, found {}", origin_, field, needed,
                    at(field).dump().substr(0, 60));
  }
  std::string text(const char* field) const {
    if (!at(field).is_string()) refuse(field, "a text");
    return at(field);
  }
  std::vector<std::string> texts(const char* field) const {
    const json& list = at(field);
    const bool fits = list.is_array() && !list.empty() &&
                      std::all_of(list.begin(), list.end(), [](const json& one) {
                        return one.is_string() && !one.get<std::string>().empty();
                      });
    if (!fits) refuse(field, "a list of texts that are not empty");
    return list;
  }
  void only(const std::vector<std::string>& known) const {
    for (const auto& [field, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), field) != known.end()) continue;
      throw DataError("{}: unknown field \"{}\"; this kind of task has {}", origin_, field,
                      fmt::join(known, ", "));
    }
  }

 private:
  json object_;
  std::string origin_;
};

double characters(std::string_view text) {
  return static_cast<double>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

void read_choices(const Fields& fields, TaskItem& item) {
  fields.only({"context", "choices", "answer", "delimiter"});
  item.context = fields.text("context");
  const std::vector<std::string> choices = fields.texts("choices");
  const std::string delimiter = fields.has("delimiter") ? fields.text("delimiter") : " ";
  for (const std::string& choice : choices) {
    item.continuations.push_back(delimiter + choice);
    item.lengths.push_back(characters(choice));
  }
  const json& answer = fields.at("answer");
  if (answer.is_string()) {
    const auto right = std::find(choices.begin(), choices.end(), answer.get<std::string>());
    item.answer = static_cast<size_t>(right - choices.begin());
  } else {
    item.answer = answer.is_number_unsigned() ? answer.get<size_t>() : choices.size();
  }
  if (item.answer >= choices.size()) {
    fields.refuse("answer", fmt::format("one of the choices, or its place from 0 to {},",
                                        choices.size() - 1));
  }
}

// As LAMBADA's task of lm-eval: words end at single spaces.
void read_last_word(const Fields& fields, TaskItem& item) {
  fields.only({"text"});
  const std::string text = fields.text("text");
  const size_t space = text.rfind(' ');
  if (space == std::string::npos || space + 1 == text.size()) {
    fields.refuse("text", "a text with a word after a space");
  }
  item.context = text.substr(0, space);
  item.continuations = {text.substr(space)};
}

void read_exact_match(const Fields& fields, TaskItem& item) {
  fields.only({"context", "answer", "stop", "max_tokens"});
  item.context = fields.text("context");
  item.expected = fields.text("answer");
  item.generation.greedy = true;
  item.generation.max_tokens = 32;
  item.generation.stop = {"\n"};
  if (fields.has("stop")) item.generation.stop = fields.texts("stop");
  if (!fields.has("max_tokens")) return;
  const json& most = fields.at("max_tokens");
  if (!most.is_number_unsigned() || most == 0 || most > int64_t{1} << 53) {
    fields.refuse("max_tokens", "a whole number of at least 1");
  }
  item.generation.max_tokens = most;
}

TaskKind kind_of(const Fields& fields, const std::string& origin) {
  if (fields.has("choices")) return TaskKind::multiple_choice;
  if (fields.has("text")) return TaskKind::last_word;
  if (fields.has("answer")) return TaskKind::exact_match;
  throw DataError(
      "{}: \"choices\" (multiple choice), \"text\" (last word) or \"answer\" (exact match) is "
      "needed",
      origin);
}

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpaces);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

// What an item adds to each figure.
struct ItemScore {
  double right = 0, right_norm = 0, logprob = 0;
};

// Whether the greedy continuation of the context's end, as much of it as max_tokens leave room for,
// is the answer. (lm-eval: generate_until.)
bool is_matched(Generator& generator, const TaskItem& item) {
  const GenerationRequest request{
      .prompt = item.context, .options = item.generation, .truncate_prompt = true};
  Completion completion;
  generator.generate(std::span(&request, 1), BatchLimits(),
                     [&](size_t, Completion done) { completion = std::move(done); });
  return trimmed(completion.text) == trimmed(item.expected);
}

ItemScore score_item(Generator& generator, TaskKind kind, const TaskItem& item) {
  if (kind == TaskKind::exact_match) {
    return {.right = is_matched(generator, item) ? 1.0 : 0.0};
  }
  std::vector<int32_t> context;
  std::vector<std::vector<int32_t>> continuations;
  for (const std::string& continuation : item.continuations) {
    auto [before, after] = encode_pair(generator.tokenizer(), item.context, continuation);
    if (after.empty()) throw DataError("{}: '{}' adds no token", item.origin, continuation);
    context = std::move(before);  // the same each time
    continuations.push_back(std::move(after));
  }
  const auto scores = generator.score(context, continuations);
  if (kind == TaskKind::last_word) {
    return {.right = scores[0].likeliest ? 1.0 : 0.0, .logprob = scores[0].logprob};
  }
  size_t best = 0, best_norm = 0;  // the first of equals
  for (size_t i = 1; i < scores.size(); i++) {
    const auto norm = [&](size_t k) { return scores[k].logprob / item.lengths[k]; };
    if (scores[i].logprob > scores[best].logprob) best = i;
    if (norm(i) > norm(best_norm)) best_norm = i;
  }
  return {.right = best == item.answer ? 1.0 : 0.0,
          .right_norm = best_norm == item.answer ? 1.0 : 0.0};
}

Figure mean(const std::vector<double>& values, int64_t resamples) {
  const std::vector<double> ones(values.size(), 1);
  Figure figure;
  for (const double value : values) figure.value += value;
  figure.value /= static_cast<double>(values.size());
  if (resamples > 0) figure.interval = bootstrap_interval(values, ones, resamples, 0);
  return figure;
}

}  // namespace

std::pair<std::vector<int32_t>, std::vector<int32_t>> encode_pair(const Tokenizer& tokenizer,
                                                                  std::string context,
                                                                  std::string continuation) {
  const size_t end = context.find_last_not_of(kSpaces) + 1;  // 0: nothing but spaces
  continuation.insert(0, context.substr(end));
  context.resize(end);
  std::vector<int32_t> before = tokenizer.encode_with_special_tokens(context);
  std::vector<int32_t> after = tokenizer.encode_with_special_tokens(context + continuation);
  after.erase(after.begin(),
              after.begin() + static_cast<int64_t>(std::min(before.size(), after.size())));
  if (before.empty()) {
    if (!tokenizer.end_of_text()) {
      throw UsageError("a context is empty, and the model has no end-of-text token to start from");
    }
    before.push_back(*tokenizer.end_of_text());
  }
  return {std::move(before), std::move(after)};
}

Task read_task(const std::filesystem::path& file) {
  std::istringstream in(read_file(file));
  Task task;
  std::string line;
  for (int number = 1; std::getline(in, line); number++) {
    if (trimmed(line).empty()) continue;
    TaskItem item;
    item.origin = fmt::format("{}:{}", file.string(), number);
    const Fields fields(line, item.origin);
    const TaskKind kind = kind_of(fields, item.origin);
    if (task.items.empty()) task.kind = kind;
    if (kind != task.kind) {
      throw DataError("{}: this is of kind {}, the lines before it of kind {}; part the file",
                      item.origin, name(kind), name(task.kind));
    }
    if (kind == TaskKind::multiple_choice) read_choices(fields, item);
    if (kind == TaskKind::last_word) read_last_word(fields, item);
    if (kind == TaskKind::exact_match) read_exact_match(fields, item);
    task.items.push_back(std::move(item));
  }
  if (task.items.empty())
    throw DataError("{} holds no question: one a line is needed", file.string());
  return task;
}

TaskResult score(Generator& generator, const Task& task, Communicator& communicator,
                 int64_t resamples) {
  const size_t count = task.items.size();
  // Each worker fills in its own items; adding zeros is exact.
  std::vector<double> right(count), right_norm(count), logprob(count);
  run_together(communicator, [&] {
    for (auto i = static_cast<size_t>(communicator.rank()); i < count;
         i += static_cast<size_t>(communicator.size())) {
      const TaskItem& item = task.items[i];
      try {
        const ItemScore item_score = score_item(generator, task.kind, item);
        right[i] = item_score.right;
        right_norm[i] = item_score.right_norm;
        logprob[i] = item_score.logprob;
      } catch (const UsageError& error) {  // what does not fit the model
        throw DataError("{}: {}", item.origin, error.what());
      }
    }
  });
  communicator.set_purpose("of a task");
  for (std::vector<double>* values : {&right, &right_norm, &logprob}) {
    communicator.all_reduce(values->data(), static_cast<int64_t>(count), ReduceOp::sum);
  }
  TaskResult result{task.kind, static_cast<int64_t>(count), mean(right, resamples), {}, {}};
  if (task.kind == TaskKind::multiple_choice) result.accuracy_norm = mean(right_norm, resamples);
  if (task.kind == TaskKind::last_word) {
    Figure perplexity = mean(logprob, resamples);
    perplexity.value = std::exp(-perplexity.value);
    if (perplexity.interval) {
      const auto [low, high] = *perplexity.interval;
      perplexity.interval = {std::exp(-high), std::exp(-low)};
    }
    result.perplexity = perplexity;
  }
  return result;
}

json to_json(const TaskResult& result) {
  json object = {{"kind", name(result.kind)}, {"items", result.items}};
  const auto add = [&](const std::string& field, const Figure& figure) {
    object[field] = figure.value;
    if (!figure.interval) return;
    object[field + "_interval"] = {figure.interval->low, figure.interval->high};
  };
  add("accuracy", result.accuracy);
  if (result.accuracy_norm) add("accuracy_norm", *result.accuracy_norm);
  if (result.perplexity) add("perplexity", *result.perplexity);
  return object;
}

}  // namespace lockstep
