#include "launch/requests.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/check.h"
#include "core/file.h"

namespace lockstep::launch {
namespace {

using nlohmann::json;

// Which numbers are in range, `validate` says (inference/sampling_options.h).
template <class Field>
OptionValue any_integer(Field& field, std::string placeholder = "N") {
  return integer(field, -kManyItems, kManyItems, std::move(placeholder));
}
OptionValue any_real(double& field, std::string placeholder = "X") {
  return real(field, kAnyNumber, std::move(placeholder));
}

// TOKEN=BIAS, several times. The last equals sign counts: the token may be one.
OptionValue biases(std::vector<std::pair<std::string, double>>& field) {
  const auto set = [&field](const std::string& s) {
    const size_t equals = s.rfind('=');
    if (equals == std::string::npos || equals == 0) {
      throw std::invalid_argument("TOKEN=BIAS is needed, as in 464=-2.5");
    }
    field.emplace_back(s.substr(0, equals), to_real(s.substr(equals + 1), kAnyNumber));
  };
  return {.placeholder = "TOKEN=BIAS",
          .set = set,
          .get = [] { return std::string(); },
          .repeatable = true};
}

void add_choice_options(OptionTable& table, SamplingOptions& s) {
  table.group("Sampling");
  table.add("max-tokens", any_integer(s.max_tokens), "most tokens to write a prompt (default 128)");
  table.add("greedy", flag(s.greedy), "always take the likeliest token");
  table.add("temperature", any_real(s.temperature),
            "below 1 prefers likely tokens, above 1 evens them out; 0: greedy (default 1)");
  table.add("top-k", any_integer(s.top_k, "K"),
            "sample from the K likeliest tokens; 0: all (default 0)");
  table.add("top-p", any_real(s.top_p, "P"),
            "sample from the likeliest tokens that together have probability P; 0: the likeliest "
            "(default 1)");
  table.add("min-p", any_real(s.min_p, "P"),
            "sample from tokens at least P times as likely as the likeliest (default 0)");
  table.add("typical-p", any_real(s.typical_p, "P"),
            "sample from the tokens that are about as surprising as is to be expected and together "
            "have probability P (default 1)");
  table.add("seed", seed(s.seed), "of the sampling; the same seed gives the same text (default 0)");
  table.add("stop", texts(s.stop, "TEXT"), "end before this text; may be given several times");
}

void add_beam_options(OptionTable& table, BeamOptions& b) {
  table.group("Beam search");
  table.add("num-beams", any_integer(b.num_beams),
            "keep the N likeliest texts, and let each grow by its likeliest tokens; 1: no beam "
            "search (default 1)");
  table.add("length-penalty", any_real(b.length_penalty),
            "compare ended texts by the sum of their log-probabilities divided by their length to "
            "this power (default 1)");
  table.add("early-stopping",
            choice(b.early_stopping,
                   {{"true", EarlyStopping::yes},
                    {"false", EarlyStopping::no},
                    {"never", EarlyStopping::never}},
                   "true|false|never"),
            "with N ended texts end at once, when a better one is unlikely, or when there can be "
            "none (default false)");
  table.add("num-return-sequences", any_integer(b.num_return_sequences),
            "show the best so many texts (default 1)");
  table.add("num-beam-groups", any_integer(b.num_groups),
            "part the beams into so many groups, which are to differ (default 1)");
  table.add(
      "diversity-penalty", any_real(b.diversity_penalty),
      "subtracted from a token's log-probability for each beam of an earlier group that chose "
      "it in the same place (default 0)");
}

}  // namespace

void add_request_options(OptionTable& table, RequestOptions& o) {
  SamplingOptions& s = o.sampling;
  add_choice_options(table, s);
  add_beam_options(table, s.beams);
  table.group("Penalties and bans (TOKEN: an id, or a text that is one token)");
  table.add("repetition-penalty", any_real(s.repetition_penalty),
            "divides the logits of tokens of the prompt and the text where they are positive, else "
            "multiplies them; 1: none (default 1)");
  table.add("presence-penalty", any_real(s.presence_penalty),
            "subtracted from the logits of tokens of the text (default 0)");
  table.add("frequency-penalty", any_real(s.frequency_penalty),
            "subtracted as often as a token is in the text (default 0)");
  table.add("no-repeat-ngram-size", any_integer(s.no_repeat_ngram_size),
            "no N tokens follow each other twice, the prompt included; 0: they may (default 0)");
  table.add("logit-bias", biases(o.logit_bias),
            "added to this token's logit; may be given several times");
  table.add("force-first", texts(o.force_first, "TOKEN"),
            "the text begins with this token; given several times, with these one after the other");
  table.add("forbid", texts(o.forbid, "TOKEN"), "never this token; may be given several times");
  table.add("forbid-first", texts(o.forbid_first, "TOKEN"),
            "the text does not begin with this token; may be given several times");
}

void add_logprobs_option(OptionTable& table, RequestOptions& o) {
  table.add("logprobs", any_integer(o.sampling.logprobs),
            "with --json or --output: logprobs too, of each token, and of the N likeliest in its "
            "place, as the "
            "model has them before any option changes them");
}

std::vector<std::pair<std::string, std::string>> values(RequestOptions o) {
  OptionTable table("lockstep generate", "", "");
  add_request_options(table, o);
  add_logprobs_option(table, o);
  auto all = table.values();
  const auto add = [&](const char* option, const json& list) {
    if (list.empty()) return;
    all.emplace_back(option, list.dump(-1, ' ', false, json::error_handler_t::replace));
  };
  add("stop", o.sampling.stop);
  add("logit-bias", o.logit_bias);
  add("force-first", o.force_first);
  add("forbid", o.forbid);
  add("forbid-first", o.forbid_first);
  return all;
}

namespace {

// The list that an option fills; null: it fills none.
std::vector<std::string>* list_named(const std::string& option, RequestOptions& o) {
  if (option == "stop") return &o.sampling.stop;
  if (option == "force-first") return &o.force_first;
  if (option == "forbid") return &o.forbid;
  if (option == "forbid-first") return &o.forbid_first;
  return nullptr;
}

// As the option is typed. A text in a list of tokens is one between quotes: never an id.
std::string list_item(const std::string& option, const json& value) {
  const bool tokens = option != "stop";
  if (value.is_string()) {
    const auto text = value.get<std::string>();
    return tokens ? fmt::format("\"{}\"", text) : text;
  }
  if (tokens && value.is_number_unsigned()) return value.dump();
  throw UsageError(
      "--{} {}: {} is needed", option, value.dump(),
      tokens ? "a token, by its id (a whole number of at least 0) or text," : "a text");
}

void read_list(const std::string& option, const json& value, std::vector<std::string>& list) {
  list.clear();  // those of the command line
  if (!value.is_array()) return list.push_back(list_item(option, value));
  for (const json& one : value) list.push_back(list_item(option, one));
}

void read_biases(const json& value, RequestOptions& o) {
  if (!value.is_object()) throw UsageError("logit_bias: an object {{TOKEN: BIAS}} is needed");
  o.logit_bias.clear();
  for (const auto& [token, bias] : value.items()) {
    if (!bias.is_number()) {
      throw UsageError("--logit-bias {}={}: a number is needed", token, bias.dump());
    }
    o.logit_bias.emplace_back(token, bias.get<double>());
  }
}

// The fields of one request but the prompt: lists, and what could stand on a command line. No
// option there takes a list or an object, so that they are refused with all that does not fit.
void read_fields(const json& object, Request& request) {
  std::vector<std::string> arguments;
  for (const auto& [name, value] : object.items()) {
    if (name == "prompt") continue;
    std::string option = name;
    std::replace(option.begin(), option.end(), '_', '-');
    if (option == "greedy") {
      if (!value.is_boolean()) throw UsageError("{}: true or false is needed", name);
      request.options.sampling.greedy = value.get<bool>();
    } else if (option == "logit-bias") {
      read_biases(value, request.options);
    } else if (auto* list = list_named(option, request.options)) {
      read_list(option, value, *list);
    } else {
      arguments.push_back(fmt::format("--{}={}", option,
                                      value.is_string() ? value.get<std::string>() : value.dump()));
    }
  }
  OptionTable table("lockstep generate", "", "");
  add_request_options(table, request.options);
  add_logprobs_option(table, request.options);
  table.parse(arguments);
}

Request request_of_line(const std::string& line, const Request& with_defaults) {
  Request request = with_defaults;
  const json object = json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("prompt") || !object.at("prompt").is_string()) {
    throw DataError("{}an object with a text \"prompt\" is needed, found '{}'", request.origin,
                    line.substr(0, 60));
  }
  request.prompt = object.at("prompt");
  if (object.contains("seed")) request.stream_index = 0;
  try {
    read_fields(object, request);
    validate(request.options.sampling);
  } catch (const UsageError& error) {
    throw UsageError("{}{}", request.origin, error.what());
  }
  return request;
}

// "5 'a', 6 'bc', ..."
std::string list_of(const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  constexpr size_t kMost = 5;
  std::string list;
  for (size_t i = 0; i < std::min(ids.size(), kMost); i++) {
    list += fmt::format("{}{} '{}'", i > 0 ? ", " : "", ids[i], tokenizer.token_bytes(ids[i]));
  }
  return ids.size() > kMost ? list + ", ..." : list;
}

int32_t token_of(const std::string& name, const char* option, const Tokenizer& tokenizer) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (!name.empty() && std::all_of(name.begin(), name.end(), is_digit)) {
    try {
      return static_cast<int32_t>(to_integer(name, 0, tokenizer.vocab_size() - 1));
    } catch (const std::invalid_argument&) {
      throw UsageError("--{} {}: there is no such token; this model's are 0 to {}", option, name,
                       tokenizer.vocab_size() - 1);
    }
  }
  const bool quoted = name.size() >= 2 && name.front() == '"' && name.back() == '"';
  const std::string text = quoted ? name.substr(1, name.size() - 2) : name;
  const std::vector<int32_t> ids = tokenizer.encode_with_special_tokens(text);
  if (ids.size() == 1) return ids.front();
  if (ids.empty())
    throw UsageError("--{} '{}': a token is needed, by its id or text", option, name);
  throw UsageError("--{} '{}': this is {} tokens ({}); one is needed, by its id or text", option,
                   text, ids.size(), list_of(ids, tokenizer));
}

}  // namespace

std::vector<Request> read_requests(const std::filesystem::path& file,
                                   const RequestOptions& defaults, uint64_t first_place) {
  const std::string extension = file.extension().string();
  const bool json_lines = extension == ".jsonl" || extension == ".ndjson";
  std::istringstream in(read_file(file));
  std::vector<Request> requests;
  std::string line;
  for (int number = 1; std::getline(in, line); number++) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    Request request{line, defaults, first_place + requests.size(), ""};
    if (json_lines) request.origin = fmt::format("{}:{}: ", file.string(), number);
    requests.push_back(json_lines ? request_of_line(line, request) : request);
  }
  if (requests.empty()) throw DataError("{} holds no prompt: one a line is needed", file.string());
  return requests;
}

SamplingOptions resolve(const Request& request, const Tokenizer& tokenizer) {
  const RequestOptions& o = request.options;
  SamplingOptions sampling = o.sampling;
  const auto ids = [&](const std::vector<std::string>& names, const char* option) {
    std::vector<int32_t> tokens;
    for (const std::string& name : names) tokens.push_back(token_of(name, option, tokenizer));
    return tokens;
  };
  try {
    for (const auto& [name, bias] : o.logit_bias) {
      sampling.logit_bias.push_back({token_of(name, "logit-bias", tokenizer), bias});
    }
    sampling.force_first = ids(o.force_first, "force-first");
    sampling.forbid = ids(o.forbid, "forbid");
    sampling.forbid_first = ids(o.forbid_first, "forbid-first");
    validate(sampling);
  } catch (const UsageError& error) {
    throw UsageError("{}{}", request.origin, error.what());
  }
  return sampling;
}

}  // namespace lockstep::launch
