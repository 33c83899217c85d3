#include "launch/options.h"

#include <algorithm>
#include <boost/program_options.hpp>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace lockstep::launch {
namespace po = boost::program_options;
namespace {

std::string_view trimmed(std::string_view s) {
  const auto first = s.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return s.substr(first, s.find_last_not_of(" \t\r") - first + 1);
}

// The value of a line of a configuration file: up to a comment, or between double quotes.
std::string file_value(std::string_view rest) {
  rest = trimmed(rest);
  if (rest.size() >= 2 && rest.front() == '"') {
    const auto end = rest.find('"', 1);
    const auto after = end == std::string_view::npos ? rest : trimmed(rest.substr(end + 1));
    if (after.empty() || after.front() == '#') return std::string(rest.substr(1, end - 1));
  }
  for (size_t i = 0; i < rest.size(); i++) {
    const bool begins_word = i == 0 || rest[i - 1] == ' ' || rest[i - 1] == '\t';
    if (rest[i] == '#' && begins_word) return std::string(trimmed(rest.substr(0, i)));
  }
  return std::string(rest);
}

std::string quoted_if_needed(const std::string& value) {
  const bool plain = !value.empty() && trimmed(value) == value && value.front() != '"' &&
                     value.find('#') == std::string::npos;
  return plain ? value : '"' + value + '"';
}

std::string without_trailing_spaces(const std::string& text) {
  std::istringstream in(text);
  std::string result;
  for (std::string line; std::getline(in, line);) {
    result += line.substr(0, line.find_last_not_of(' ') + 1) + '\n';
  }
  return result;
}

// A description up to its first parenthesis, semicolon or colon: its subject and unit.
std::string brief(const std::string& description) {
  return std::string(trimmed(description.substr(0, description.find_first_of("(;:"))));
}

}  // namespace

OptionTable::OptionTable(std::string command, std::string usage, std::string summary)
    : command_(std::move(command)), usage_(std::move(usage)), summary_(std::move(summary)) {}

void OptionTable::group(const std::string& caption) { groups_.push_back(caption); }

void OptionTable::add(const std::string& name, OptionValue value, const std::string& description,
                      InConfigFile in_config_file) {
  CHECK(!groups_.empty() && find(name) == nullptr, "option {}", name);
  options_.push_back(
      {name, description, std::move(value), groups_.size() - 1, in_config_file, "", 0});
}

void OptionTable::positional(const std::string& name, std::filesystem::path& field) {
  positionals_.emplace_back(name, &field);
}

OptionTable::Option* OptionTable::find(const std::string& name) {
  const auto it = std::find_if(options_.begin(), options_.end(),
                               [&](const Option& option) { return option.name == name; });
  return it == options_.end() ? nullptr : &*it;
}

const OptionTable::Option* OptionTable::find(const std::string& name) const {
  return const_cast<OptionTable*>(this)->find(name);
}

std::string OptionTable::origin(const std::string& name) const {
  const Option* option = find(name);
  CHECK(option != nullptr, "option {}", name);
  return option->origin;
}

void OptionTable::forget(const std::string& name) {
  Option* option = find(name);
  CHECK(option != nullptr, "option {}", name);
  option->origin.clear();
}

void OptionTable::require(const std::string& name) const {
  if (!given(name)) {
    throw UsageError("--{} {} is missing: {}", name, find(name)->value.placeholder,
                     brief(find(name)->description));
  }
}

std::vector<std::string> OptionTable::names() const {
  std::vector<std::string> names{"help"};
  for (const Option& option : options_) {
    names.push_back(option.name);
    if (option.value.negatable) names.push_back("no-" + option.name);
  }
  return names;
}

void OptionTable::unknown(const std::string& token) const {
  const auto bare = token.substr(std::min(token.find_first_not_of('-'), token.size()));
  const auto near = nearest(bare.substr(0, bare.find('=')), names());
  if (near) throw UsageError("unknown option {}; did you mean --{}?", token, *near);
  throw UsageError("unknown option {}; '{} --help' lists those there are", token, command_);
}

// The first source that gives an option wins; within one source only repeatable options may come
// again.
void OptionTable::assign(Option& option, const std::string& text, const std::string& origin) {
  if (!option.origin.empty() && option.source != sources_) return;
  if (!option.origin.empty() && !option.value.repeatable) {
    throw UsageError("{} is given twice; give it once", origin);
  }
  try {
    option.value.set(text);
  } catch (const std::invalid_argument& problem) {
    throw UsageError("{} {}: {}", origin, text.empty() ? "''" : text, problem.what());
  }
  option.origin = origin;
  option.source = sources_;
}

void OptionTable::parse(const std::vector<std::string>& arguments) {
  sources_++;
  po::options_description description;
  for (const Option& option : options_) {
    if (option.value.placeholder.empty()) {
      description.add_options()(option.name.c_str(), "");
      if (option.value.negatable) description.add_options()(("no-" + option.name).c_str(), "");
    } else {
      auto* value = po::value<std::vector<std::string>>();  // owned by the description
      if (option.value.several) value->multitoken();
      description.add_options()(option.name.c_str(), value, "");
    }
  }
  namespace style = po::command_line_style;
  std::vector<po::option> parsed;
  try {
    // No guessing of abbreviations: what they mean changes when an option is added.
    parsed = po::command_line_parser(arguments)
                 .options(description)
                 .style(style::allow_long | style::long_allow_next | style::long_allow_adjacent)
                 .allow_unregistered()
                 .run()
                 .options;
  } catch (const po::invalid_command_line_syntax& error) {
    const std::string name = error.get_option_name().substr(2);
    const Option* option = find(name);
    if (option == nullptr && name.starts_with("no-")) option = find(name.substr(3));
    if (option != nullptr && option->value.placeholder.empty()) {
      throw UsageError("--{} takes no value", name);
    }
    throw UsageError("{} needs a value{}", error.get_option_name(),
                     option == nullptr ? "" : ": " + option->value.placeholder);
  } catch (const po::error& error) {
    throw UsageError("{}; '{} --help' shows the usage", error.what(), command_);
  }

  size_t place = 0;
  for (const po::option& token : parsed) {
    const std::string typed = token.original_tokens.empty() ? "" : token.original_tokens.front();
    const bool stray = token.position_key >= 0 || token.unregistered;
    if (stray && typed.starts_with("-") && typed != "-") unknown(typed);
    if (stray) {
      if (place == positionals_.size()) {
        throw UsageError("'{}' is not expected here; '{} --help' shows the usage", typed, command_);
      }
      *positionals_[place++].second = typed;
      continue;
    }
    // An option's own name may begin so too.
    const bool negated = token.string_key.starts_with("no-") && find(token.string_key) == nullptr;
    Option* option = find(token.string_key.substr(negated ? 3 : 0));
    CHECK(option != nullptr, "option {}", token.string_key);
    if (option->value.placeholder.empty()) {
      assign(*option, negated ? "false" : "true", "--" + token.string_key);
    }
    for (const auto& text : token.value) {
      // The value was forgotten. (A text like this can be given as --name=--text.)
      if (text.starts_with("--") && text != typed && find(text.substr(2)) != nullptr &&
          token.original_tokens.size() > 1) {
        throw UsageError("--{} needs a value: {}", option->name, option->value.placeholder);
      }
      assign(*option, text, "--" + option->name);
    }
  }
  if (place < positionals_.size()) {
    throw UsageError("{} is missing; usage: {} {}", positionals_[place].first, command_, usage_);
  }
}

void OptionTable::read_file(const std::filesystem::path& file,
                            const std::function<bool(const std::string&)>& skip) {
  sources_++;
  std::ifstream in(file);
  if (!in || std::filesystem::is_directory(file)) {
    throw UsageError("{}: cannot be read as a configuration file", file.string());
  }
  std::string line;
  for (int number = 1; std::getline(in, line); number++) {
    if (number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);  // of some editors
    const std::string_view content = trimmed(line);
    if (content.empty() || content.front() == '#') continue;
    const std::string where = fmt::format("{}:{}", file.string(), number);
    const auto equals = content.find('=');
    if (equals == std::string_view::npos) {
      throw UsageError("{}: expected 'name = value', found '{}'", where, content.substr(0, 60));
    }
    const std::string name(trimmed(content.substr(0, equals)));
    Option* option = find(name);
    if (option == nullptr || option->in_config_file == InConfigFile::no) {
      const auto near = nearest(name, names());
      if (option != nullptr) {
        throw UsageError("{}: '{}' works on the command line only", where, name);
      }
      throw UsageError("{}: unknown option '{}'{}", where, name,
                       near ? fmt::format("; did you mean {}?", *near) : "");
    }
    if (skip && skip(name)) continue;
    assign(*option, file_value(content.substr(equals + 1)), fmt::format("{}: {}", where, name));
  }
}

std::string OptionTable::help() const {
  std::ostringstream out;
  out << "Usage: " << command_ << ' ' << usage_ << "\n\n" << summary_ << '\n';
  po::options_description all("", kHelpColumns, kHelpColumns / 2);
  std::vector<po::options_description> captions;
  for (const auto& caption : groups_)
    captions.emplace_back(caption, kHelpColumns, kHelpColumns / 2);
  for (const Option& option : options_) {
    const char* text = option.description.c_str();
    auto& caption = captions[option.group];
    if (option.value.placeholder.empty()) {
      caption.add_options()(((option.value.negatable ? "[no-]" : "") + option.name).c_str(), text);
    } else {
      caption.add_options()(option.name.c_str(),
                            po::value<std::string>()->value_name(option.value.placeholder), text);
    }
  }
  for (const auto& caption : captions) all.add(caption);
  out << all;
  return without_trailing_spaces(out.str());
}

std::vector<std::pair<std::string, std::string>> OptionTable::values() const {
  std::vector<std::pair<std::string, std::string>> all;
  for (const Option& option : options_) {
    const std::string value = option.value.get();
    if (!value.empty()) all.emplace_back(option.name, value);
  }
  return all;
}

std::string OptionTable::to_config_file(const std::string& heading) const {
  std::string text = heading;
  for (size_t group = 0; group < groups_.size(); group++) {
    std::string lines;
    for (const Option& option : options_) {
      const std::string value = option.value.get();
      if (option.group != group || option.in_config_file == InConfigFile::no || value.empty()) {
        continue;
      }
      const auto assignment = fmt::format("{} = {}", option.name, quoted_if_needed(value));
      lines += fmt::format("{:<34} # {}\n", assignment, brief(option.description));
    }
    if (!lines.empty()) text += fmt::format("\n# {}\n{}", groups_[group], lines);
  }
  return text;
}

}  // namespace lockstep::launch
