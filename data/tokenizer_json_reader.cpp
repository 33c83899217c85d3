#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/check.h"
#include "data/bpe_alphabet.h"
#include "data/tokenizer_parts.h"

// Reads tokenizer.json of Hugging Face `tokenizers`, and GPT-2's two files.
namespace lockstep {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 64;                // of nesting
constexpr uint64_t kMaxUnusedIds = 1 << 20;  // a larger gap between ids is taken for damage
constexpr size_t kMaxSteps = 32;             // of the pre-tokenizer

// A value, and where it stands: "model.vocab". All reading goes through it, so that every error
// names the file and the field.
class Field {
 public:
  Field(const Json& json, std::string_view source, std::string path)
      : json_(json), source_(source), path_(std::move(path)) {}

  [[noreturn]] void fail(std::string_view what) const {
    throw DataError("{}: {}: {}", source_, path_, what);
  }

  const Json& json() const { return json_; }
  bool is_null() const { return json_.is_null(); }

  // Null when the key is missing.
  Field operator[](const char* key) const {
    static const Json kNull;
    if (!json_.is_object()) fail("an object is expected");
    const auto found = json_.find(key);
    return {found == json_.end() ? kNull : *found, source_,
            path_.empty() ? key : path_ + "." + key};
  }
  Field operator[](size_t index) const {
    return {json_[index], source_, fmt::format("{}[{}]", path_, index)};
  }
  size_t array_size() const {
    if (!json_.is_array()) fail("an array is expected");
    return json_.size();
  }
  const std::string& text() const {
    if (!json_.is_string()) fail("a text is expected");
    return json_.get_ref<const std::string&>();
  }
  bool boolean(bool if_missing) const {
    if (json_.is_null()) return if_missing;
    if (!json_.is_boolean()) fail("true or false is expected");
    return json_.get<bool>();
  }
  int32_t id() const {
    if (!json_.is_number_unsigned() || json_.get<uint64_t>() >= INT32_MAX) {
      fail("an id is expected: a whole number from 0 to 2147483646");
    }
    return json_.get<int32_t>();
  }
  // Refuses a setting that would change ids in a way we do not follow.
  void expect_absent(std::string_view supported) const {
    const bool absent = json_.is_null() || json_ == "" || json_ == false || json_ == 0.0;
    if (!absent) fail(fmt::format("'{}' is not supported, only {}", shorten(json_), supported));
  }
  static std::string shorten(const Json& json) {
    std::string text = json.is_string() ? json.get<std::string>()
                                        : json.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return text;
  }

 private:
  const Json& json_;
  std::string_view source_;
  std::string path_;
};

void check_depth(std::string_view json, std::string_view source) {
  int depth = 0;
  bool in_text = false;
  for (size_t i = 0; i < json.size(); i++) {
    const char c = json[i];
    if (in_text) {
      if (c == '\\') i++;
      if (c == '"') in_text = false;
    } else if (c == '"') {
      in_text = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) {
        throw DataError("{}: nested deeper than {} levels at byte {}: not a tokenizer", source,
                        kMaxDepth, i);
      }
    } else if (c == ']' || c == '}') {
      depth--;
    }
  }
}

Json parse(std::string_view json, std::string_view source) {
  check_depth(json, source);
  try {
    return Json::parse(json);
  } catch (const Json::parse_error& error) {
    throw DataError("{}: not JSON: damaged or cut short at byte {} of {}", source, error.byte,
                    json.size());
  } catch (const Json::exception&) {
    throw DataError("{}: not JSON: a number that is too large", source);
  }
}

std::vector<std::string> read_vocab(const Field& field) {
  if (!field.json().is_object()) field.fail("an object of tokens and ids is expected");
  std::vector<std::string> printed;
  const uint64_t limit = field.json().size() + kMaxUnusedIds;
  for (const auto& [token, value] : field.json().items()) {
    const auto fail = [&](std::string_view what) {
      field.fail(fmt::format("token '{}': {}", Field::shorten(token), what));
    };
    if (token.empty()) fail("a token without text");
    if (!value.is_number_unsigned()) fail("its id is not a whole number from 0 up");
    if (value.get<uint64_t>() >= limit)
      fail(fmt::format("id {} is far above the number of tokens", value.dump()));
    const auto id = value.get<size_t>();
    if (id >= printed.size()) printed.resize(id + 1);
    if (!printed[id].empty()) {
      fail(fmt::format("id {} is that of '{}' too", id, Field::shorten(printed[id])));
    }
    printed[id] = token;
  }
  return printed;
}

using IdOf = std::unordered_map<std::string_view, int32_t>;

IdOf index_of(const std::vector<std::string>& printed) {
  IdOf ids;
  ids.reserve(printed.size());
  for (size_t id = 0; id < printed.size(); id++) {
    if (!printed[id].empty()) ids.emplace(printed[id], static_cast<int32_t>(id));
  }
  return ids;
}

void read_merges(const Field& field, TokenizerParts& parts) {
  const IdOf ids = index_of(parts.printed);
  const size_t count = field.array_size();
  parts.merges.reserve(count);
  for (size_t i = 0; i < count; i++) {
    const Json& merge = field.json()[i];
    std::string_view left, right;
    const bool is_pair =
        merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    if (is_pair) {
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    } else if (!merge.is_string() ||
               !split_merge(merge.get_ref<const std::string&>(), &left, &right)) {
      field[i].fail("two tokens are expected");
    }
    const auto id_of = [&](std::string_view token) {
      const auto found = ids.find(token);
      if (found == ids.end()) {
        field[i].fail(fmt::format("token '{}' is not in model.vocab", Field::shorten(token)));
      }
      return found->second;
    };
    const int32_t left_id = id_of(left);
    parts.merges.emplace_back(left_id, id_of(right));
  }
}

void read_model(const Field& model, TokenizerParts& parts) {
  if (model.is_null()) model.fail("missing: not a tokenizer.json");
  if (!model["type"].is_null() && model["type"].text() != "BPE") {
    model["type"].fail(
        fmt::format("'{}' is not supported, only BPE", Field::shorten(model["type"].json())));
  }
  model["dropout"].expect_absent("none");
  model["continuing_subword_prefix"].expect_absent("none");
  model["end_of_word_suffix"].expect_absent("none");
  model["byte_fallback"].expect_absent("byte-level BPE");
  parts.ignore_merges = model["ignore_merges"].boolean(false);
  parts.printed = read_vocab(model["vocab"]);
  read_merges(model["merges"], parts);
}

PreTokenizer::Behavior read_behavior(const Field& field) {
  using Behavior = PreTokenizer::Behavior;
  const std::string& name = field.text();
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  field.fail(fmt::format("'{}' is not a behavior", Field::shorten(name)));
}

PreTokenizer::Step read_step(const Field& field) {
  PreTokenizer::Step step;
  const std::string& type = field["type"].text();
  if (type == "ByteLevel") {
    step.kind = PreTokenizer::Step::Kind::byte_level;
    // Missing means true in Hugging Face's reader.
    if (field["add_prefix_space"].boolean(true)) {
      field["add_prefix_space"].fail("a space put before the text is not supported");
    }
    step.use_regex = field["use_regex"].boolean(true);
  } else if (type == "Digits") {
    step.kind = PreTokenizer::Step::Kind::digits;
    step.individual_digits = field["individual_digits"].boolean(false);
  } else if (type == "Split") {
    step.kind = PreTokenizer::Step::Kind::split;
    const Field pattern = field["pattern"];
    step.is_regex = !pattern["Regex"].is_null();
    step.pattern = pattern[step.is_regex ? "Regex" : "String"].text();
    step.behavior = read_behavior(field["behavior"]);
    step.invert = field["invert"].boolean(false);
    try {
      PreTokenizer check({step});
    } catch (const std::invalid_argument& error) {
      pattern.fail(error.what());
    }
  } else {
    field["type"].fail(fmt::format("'{}' is not supported, only ByteLevel, Split, Digits, Sequence",
                                   Field::shorten(type)));
  }
  return step;
}

void read_steps(const Field& field, std::vector<PreTokenizer::Step>& steps) {
  if (field["type"].text() == "Sequence") {
    const Field list = field["pretokenizers"];
    for (size_t i = 0; i < list.array_size(); i++) read_steps(list[i], steps);
    return;
  }
  if (!steps.empty() && steps.back().kind == PreTokenizer::Step::Kind::byte_level) {
    field.fail("splitting after ByteLevel is not supported");
  }
  if (steps.size() == kMaxSteps) field.fail("too many steps");
  steps.push_back(read_step(field));
}

void read_pre_tokenizer(const Field& field, TokenizerParts& parts) {
  if (!field.is_null()) read_steps(field, parts.steps);
  if (parts.steps.empty() || parts.steps.back().kind != PreTokenizer::Step::Kind::byte_level) {
    field.fail("only byte-level BPE is supported: a ByteLevel pre-tokenizer is expected");
  }
}

void check_decoder(const Field& field) {
  if (field.is_null()) return;
  if (field["type"].text() == "Sequence") {
    const Field list = field["decoders"];
    for (size_t i = 0; i < list.array_size(); i++) check_decoder(list[i]);
  } else if (field["type"].text() != "ByteLevel") {
    field["type"].fail(
        fmt::format("'{}' is not supported, only ByteLevel", Field::shorten(field["type"].json())));
  }
}

void read_added_tokens(const Field& list, TokenizerParts& parts) {
  if (list.is_null()) return;
  for (size_t i = 0; i < list.array_size(); i++) {
    const Field field = list[i];
    AddedToken token;
    token.id = field["id"].id();
    token.content = field["content"].text();
    if (token.content.empty()) continue;  // as Hugging Face does
    token.special = field["special"].boolean(false);
    token.lstrip = field["lstrip"].boolean(false);
    token.rstrip = field["rstrip"].boolean(false);
    token.normalized = field["normalized"].boolean(!token.special);
    field["single_word"].expect_absent("tokens that may stand inside a word");
    parts.added_tokens.push_back(std::move(token));
  }
  std::stable_sort(parts.added_tokens.begin(), parts.added_tokens.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
}

void check_normalizer(const Field& field) {
  if (field.is_null()) return;
  const Field type = field["type"];
  const bool empty = type.text() == "Sequence" && field["normalizers"].array_size() == 0;
  if (!empty) {
    type.fail(fmt::format("'{}' is not supported: text is encoded as it is",
                          Field::shorten(type.json())));
  }
}

}  // namespace

bool split_merge(std::string_view line, std::string_view* left, std::string_view* right) {
  const size_t space = line.find(' ');
  if (space == 0 || space == line.npos || space + 1 == line.size()) return false;
  *left = line.substr(0, space);
  *right = line.substr(space + 1);
  return right->find(' ') == right->npos;
}

TokenizerParts parse_tokenizer_json(std::string_view json, std::string_view source) {
  const Json document = parse(json, source);
  const Field root(document, source, "");
  if (!document.is_object()) throw DataError("{}: not a tokenizer.json: no JSON object", source);
  TokenizerParts parts;
  check_normalizer(root["normalizer"]);
  read_model(root["model"], parts);
  read_pre_tokenizer(root["pre_tokenizer"], parts);
  check_decoder(root["decoder"]);
  read_added_tokens(root["added_tokens"], parts);
  parts.post_processor = root["post_processor"].json().dump();
  return parts;
}

TokenizerParts parse_gpt2_files(std::string_view vocab_json, std::string_view merges_txt,
                                std::string_view vocab_source, std::string_view merges_source) {
  const Json vocab = parse(vocab_json, vocab_source);
  TokenizerParts parts;
  parts.printed = read_vocab(Field(vocab, vocab_source, "vocabulary"));
  const IdOf ids = index_of(parts.printed);
  for (int line_number = 1; !merges_txt.empty(); line_number++) {
    std::string_view line = merges_txt.substr(0, merges_txt.find('\n'));
    merges_txt.remove_prefix(std::min(line.size() + 1, merges_txt.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    std::string_view left, right;
    if (!split_merge(line, &left, &right)) {
      throw DataError("{}: line {}: two tokens are expected", merges_source, line_number);
    }
    const auto found_left = ids.find(left), found_right = ids.find(right);
    if (found_left == ids.end() || found_right == ids.end()) {
      throw DataError("{}: line {}: token '{}' is not in {}", merges_source, line_number,
                      found_left == ids.end() ? left : right, vocab_source);
    }
    parts.merges.emplace_back(found_left->second, found_right->second);
  }
  parts.steps = {PreTokenizer::Step{}};
  constexpr std::string_view kEndOfText = "<|endoftext|>";
  if (const auto found = ids.find(kEndOfText); found != ids.end()) {
    parts.added_tokens.push_back({.id = found->second, .content = std::string(kEndOfText)});
  }
  return parts;
}

}  // namespace lockstep
