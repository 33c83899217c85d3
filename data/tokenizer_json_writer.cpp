#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/tokenizer_parts.h"

// Writes tokenizer.json as Hugging Face `tokenizers` reads it: a token and a merge a line.
namespace lockstep {
namespace {

// A JSON text. nlohmann's own writer is used for what needs escapes.
std::string json_text(std::string_view text) { return nlohmann::json(text).dump(); }

std::string_view behavior_name(PreTokenizer::Behavior behavior) {
  using Behavior = PreTokenizer::Behavior;
  switch (behavior) {
    case Behavior::removed:
      return "Removed";
    case Behavior::isolated:
      return "Isolated";
    case Behavior::merged_with_previous:
      return "MergedWithPrevious";
    case Behavior::merged_with_next:
      return "MergedWithNext";
    case Behavior::contiguous:
      return "Contiguous";
  }
  return "";
}

std::string write_step(const PreTokenizer::Step& step) {
  switch (step.kind) {
    case PreTokenizer::Step::Kind::byte_level:
      return fmt::format(
          R"({{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, )"
          R"("use_regex": {}}})",
          step.use_regex);
    case PreTokenizer::Step::Kind::digits:
      return fmt::format(R"({{"type": "Digits", "individual_digits": {}}})",
                         step.individual_digits);
    case PreTokenizer::Step::Kind::split:
      return fmt::format(
          R"({{"type": "Split", "pattern": {{"{}": {}}}, "behavior": "{}", "invert": {}}})",
          step.is_regex ? "Regex" : "String", json_text(step.pattern), behavior_name(step.behavior),
          step.invert);
  }
  return "";
}

std::string write_pre_tokenizer(const std::vector<PreTokenizer::Step>& steps) {
  if (steps.size() == 1) return write_step(steps[0]);
  std::string list;
  for (const PreTokenizer::Step& step : steps) {
    list += fmt::format("{}\n    {}", list.empty() ? "" : ",", write_step(step));
  }
  return fmt::format("{{\"type\": \"Sequence\", \"pretokenizers\": [{}\n  ]}}", list);
}

std::string write_added_tokens(const std::vector<AddedToken>& tokens) {
  std::string list;
  for (const AddedToken& token : tokens) {
    list += fmt::format(
        "{}\n    {{\"id\": {}, \"content\": {}, \"single_word\": false, \"lstrip\": {}, "
        "\"rstrip\": {}, \"normalized\": {}, \"special\": {}}}",
        list.empty() ? "" : ",", token.id, json_text(token.content), token.lstrip, token.rstrip,
        token.normalized, token.special);
  }
  return list.empty() ? "[]" : "[" + list + "\n  ]";
}

}  // namespace

std::string write_tokenizer_json(const TokenizerParts& parts) {
  std::string out = "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n";
  out += fmt::format("  \"added_tokens\": {},\n  \"normalizer\": null,\n",
                     write_added_tokens(parts.added_tokens));
  out += fmt::format("  \"pre_tokenizer\": {},\n", write_pre_tokenizer(parts.steps));
  out += fmt::format("  \"post_processor\": {},\n", parts.post_processor);
  out +=
      "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
      "\"trim_offsets\": true, \"use_regex\": true},\n";
  out += fmt::format(
      "  \"model\": {{\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
      "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
      "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": {},\n",
      parts.ignore_merges);
  out += "    \"vocab\": {";
  const char* separator = "";
  for (size_t id = 0; id < parts.printed.size(); id++) {
    if (parts.printed[id].empty()) continue;
    out += fmt::format("{}\n      {}: {}", separator, json_text(parts.printed[id]), id);
    separator = ",";
  }
  out += "\n    },\n    \"merges\": [";
  separator = "";
  for (const auto& [left, right] : parts.merges) {
    const std::string& left_text = parts.printed[static_cast<size_t>(left)];
    const std::string& right_text = parts.printed[static_cast<size_t>(right)];
    out += fmt::format("{}\n      {}", separator, json_text(left_text + " " + right_text));
    separator = ",";
  }
  out += "\n    ]\n  }\n}\n";
  return out;
}

}  // namespace lockstep
