#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"

// The options of one subcommand: each is declared once, bound to the field that it fills, and then
// works on the command line (Boost.Program_options), by the same name in a configuration file, in
// the help text and in the configuration that `train` leaves behind.
namespace lockstep::launch {

// How the text of an option becomes the value of a field, and back.
struct OptionValue {
  std::string placeholder;  // in help, "N"; empty: a switch, which takes no value
  // Throws std::invalid_argument with what is wrong, to follow "--name text: ".
  std::function<void(const std::string& text)> set;
  std::function<std::string()> get;  // text that `set` accepts; empty: no value
  bool repeatable = false;           // may be given several times
  bool several = false;              // takes several values at once: --input A B C
  bool negatable = false;            // a flag that --no-NAME turns off
};

// Numbers from low to high; an open end is not part of it.
struct Interval {
  double low, high;
  bool open_low = false, open_high = false;
};
inline constexpr double kUnlimited = 1e300;  // as a high end, and -kUnlimited as a low one
inline constexpr Interval kAnyNumber{-kUnlimited, kUnlimited, false, false};
inline constexpr Interval kPositive{0, kUnlimited, true, false};
inline constexpr Interval kNotNegative{0, kUnlimited, false, false};
inline constexpr int64_t kManyItems = int64_t{1} << 53;  // no limit, and -kManyItems no low one

// Text to number; throw std::invalid_argument.
int64_t to_integer(const std::string& text, int64_t low, int64_t high);
uint64_t to_seed(const std::string& text);
double to_real(const std::string& text, const Interval& interval);
bool to_bool(const std::string& text);
std::string real_text(double value);  // the shortest text that reads back as the same number

// Bindings to a field, T or std::optional<T>. The field must outlive the table.
OptionValue flag(bool& field);
OptionValue negatable_flag(bool& field);  // --NAME and --no-NAME
OptionValue text(std::string& field, std::string placeholder);
OptionValue path(std::filesystem::path& field, std::string placeholder);
OptionValue texts(std::vector<std::string>& field, std::string placeholder);
OptionValue paths(std::vector<std::filesystem::path>& field, std::string placeholder);
OptionValue seed(uint64_t& field);

namespace detail {
template <class T>
struct Unwrap {
  using type = T;
};
template <class T>
struct Unwrap<std::optional<T>> {
  using type = T;
};
template <class Field>
std::string field_text(const Field& field,
                       const std::function<std::string(typename Unwrap<Field>::type)>& to_text) {
  if constexpr (std::is_same_v<Field, typename Unwrap<Field>::type>) {
    return to_text(field);
  } else {
    return field ? to_text(*field) : std::string();
  }
}
[[noreturn]] void not_one_of(const std::string& text, const std::vector<std::string>& names);
}  // namespace detail

template <class Field>
OptionValue integer(Field& field, int64_t low, int64_t high = kManyItems,
                    std::string placeholder = "N") {
  using T = typename detail::Unwrap<Field>::type;
  return {.placeholder = std::move(placeholder),
          .set = [&field, low,
                  high](const std::string& s) { field = static_cast<T>(to_integer(s, low, high)); },
          .get =
              [&field] {
                return detail::field_text<Field>(field, [](T v) { return std::to_string(v); });
              }};
}

template <class Field>
OptionValue real(Field& field, Interval interval, std::string placeholder = "X") {
  using T = typename detail::Unwrap<Field>::type;
  return {.placeholder = std::move(placeholder),
          .set = [&field,
                  interval](const std::string& s) { field = static_cast<T>(to_real(s, interval)); },
          .get = [&field] { return detail::field_text<Field>(field, real_text); }};
}

// One of a few names.
template <class Field>
OptionValue choice(Field& field,
                   std::vector<std::pair<std::string, typename detail::Unwrap<Field>::type>> values,
                   std::string placeholder = "NAME") {
  using T = typename detail::Unwrap<Field>::type;
  const auto set = [&field, values](const std::string& s) {
    std::vector<std::string> names;
    for (const auto& [name, value] : values) {
      if (name == s) {
        field = value;
        return;
      }
      names.push_back(name);
    }
    detail::not_one_of(s, names);
  };
  const auto get = [&field, values] {
    return detail::field_text<Field>(field, [&values](T v) {
      for (const auto& [name, value] : values) {
        if (value == v) return name;
      }
      return std::string();
    });
  };
  return {.placeholder = std::move(placeholder), .set = set, .get = get};
}

// The name nearest to `name` by Damerau-Levenshtein distance (Damerau, 1964: insertions, deletions,
// substitutions, and swaps of neighbours), or none when all are too far to be what was meant.
std::optional<std::string> nearest(std::string_view name, const std::vector<std::string>& names);

enum class InConfigFile { yes, no };

class OptionTable {
 public:
  // `command` as typed, "lockstep train"; `usage` what follows it; `summary` one or two sentences.
  OptionTable(std::string command, std::string usage, std::string summary);

  // The options added from here on stand under this caption.
  void group(const std::string& caption);
  void add(const std::string& name, OptionValue value, const std::string& description,
           InConfigFile in_config_file = InConfigFile::yes);
  // An argument without a name, in this order; all are required.
  void positional(const std::string& name, std::filesystem::path& field);

  // Each throws UsageError: an unknown option (naming the nearest), a value that does not fit, an
  // option given twice. What is set first stays: the command line, then files in order of
  // precedence. From a file, options for which `skip` says so are left alone.
  void parse(const std::vector<std::string>& arguments);
  void read_file(const std::filesystem::path& file,
                 const std::function<bool(const std::string& name)>& skip = nullptr);

  // As if it had not been given so far.
  void forget(const std::string& name);

  bool given(const std::string& name) const { return !origin(name).empty(); }
  // Where a value came from: "--steps", or "run.cfg:12: steps"; empty when it was not given.
  std::string origin(const std::string& name) const;
  // Throws UsageError when none of the sources gave it.
  void require(const std::string& name) const;

  // Every option that has a value, by name. (Those that may be given several times have none.)
  std::vector<std::pair<std::string, std::string>> values() const;

  std::string help() const;
  // Every option that has a value and belongs in a file, by group, as `read_file` accepts it.
  std::string to_config_file(const std::string& heading) const;

  static constexpr int kHelpColumns = 100;

 private:
  struct Option {
    std::string name, description;
    OptionValue value;
    size_t group;
    InConfigFile in_config_file;
    std::string origin;  // empty: not given
    int source = 0;      // which parse or file gave it
  };
  Option* find(const std::string& name);
  const Option* find(const std::string& name) const;
  void assign(Option& option, const std::string& text, const std::string& origin);
  std::vector<std::string> names() const;
  [[noreturn]] void unknown(const std::string& token) const;

  std::string command_, usage_, summary_;
  std::vector<std::string> groups_;
  std::vector<Option> options_;
  std::vector<std::pair<std::string, std::filesystem::path*>> positionals_;
  int sources_ = 0;
};

}  // namespace lockstep::launch
