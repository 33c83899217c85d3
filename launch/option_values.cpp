#include <charconv>
#include <cmath>
#include <stdexcept>

#include "launch/options.h"

namespace lockstep::launch {
namespace {

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument(reason); }

template <class T>
std::optional<T> parse_number(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end || text.empty()) return std::nullopt;
  return value;
}

// To follow "a number".
std::string words(const Interval& interval) {
  if (interval.low == -kUnlimited && interval.high == kUnlimited) return "";
  const std::string low =
      fmt::format(" {} {}", interval.open_low ? "above" : "of at least", interval.low);
  if (interval.high == kUnlimited) return low;
  if (interval.open_low || interval.open_high) {
    return fmt::format("{} and {} {}", low, interval.open_high ? "below" : "at most",
                       interval.high);
  }
  return fmt::format(" from {} to {}", interval.low, interval.high);
}

}  // namespace

int64_t to_integer(const std::string& text, int64_t low, int64_t high) {
  const auto value = parse_number<int64_t>(text);
  if (value && *value >= low && *value <= high) return *value;
  if (low == -kManyItems && high == kManyItems) refuse("a whole number is needed");
  if (high == kManyItems) refuse(fmt::format("a whole number of at least {} is needed", low));
  refuse(fmt::format("a whole number from {} to {} is needed", low, high));
}

uint64_t to_seed(const std::string& text) {
  const auto value = parse_number<uint64_t>(text);
  if (!value) refuse("a whole number from 0 to 18446744073709551615 is needed");
  return *value;
}

double to_real(const std::string& text, const Interval& interval) {
  const auto value = parse_number<double>(text);
  const bool inside = value && std::isfinite(*value) &&
                      (interval.open_low ? *value > interval.low : *value >= interval.low) &&
                      (interval.open_high ? *value < interval.high : *value <= interval.high);
  if (!inside) refuse(fmt::format("a number{} is needed", words(interval)));
  return *value;
}

bool to_bool(const std::string& text) {
  if (text == "true" || text == "yes" || text == "on" || text == "1") return true;
  if (text == "false" || text == "no" || text == "off" || text == "0") return false;
  refuse("true or false is needed");
}

std::string real_text(double value) { return fmt::format("{}", value); }

OptionValue flag(bool& field) {
  return {.placeholder = "",
          .set = [&field](const std::string& s) { field = to_bool(s); },
          .get = [&field] { return std::string(field ? "true" : "false"); }};
}

OptionValue negatable_flag(bool& field) {
  OptionValue value = flag(field);
  value.negatable = true;
  return value;
}

OptionValue text(std::string& field, std::string placeholder) {
  return {.placeholder = std::move(placeholder),
          .set = [&field](const std::string& s) { field = s; },
          .get = [&field] { return field; }};
}

OptionValue path(std::filesystem::path& field, std::string placeholder) {
  return {.placeholder = std::move(placeholder),
          .set =
              [&field](const std::string& s) {
                if (s.empty()) refuse("a path is needed");
                field = s;
              },
          .get = [&field] { return field.string(); }};
}

OptionValue texts(std::vector<std::string>& field, std::string placeholder) {
  return {.placeholder = std::move(placeholder),
          .set = [&field](const std::string& s) { field.push_back(s); },
          .get = [] { return std::string(); },
          .repeatable = true};
}

OptionValue paths(std::vector<std::filesystem::path>& field, std::string placeholder) {
  return {.placeholder = std::move(placeholder),
          .set =
              [&field](const std::string& s) {
                if (s.empty()) refuse("a path is needed");
                field.emplace_back(s);
              },
          .get = [] { return std::string(); },
          .repeatable = true,
          .several = true};
}

OptionValue seed(uint64_t& field) {
  return {.placeholder = "N",
          .set = [&field](const std::string& s) { field = to_seed(s); },
          .get = [&field] { return std::to_string(field); }};
}

void detail::not_one_of(const std::string& text, const std::vector<std::string>& names) {
  const auto near = nearest(text, names);
  refuse(fmt::format("one of {} is needed{}", fmt::join(names, ", "),
                     near ? fmt::format("; did you mean {}?", *near) : ""));
}

std::optional<std::string> nearest(std::string_view name, const std::vector<std::string>& names) {
  const auto distance = [](std::string_view a, std::string_view b) {
    std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= a.size(); i++) d[i][0] = i;
    for (size_t j = 0; j <= b.size(); j++) d[0][j] = j;
    for (size_t i = 1; i <= a.size(); i++) {
      for (size_t j = 1; j <= b.size(); j++) {
        const size_t substitution = a[i - 1] == b[j - 1] ? 0 : 1;
        d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + substitution});
        if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
          d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
      }
    }
    return d[a.size()][b.size()];
  };
  std::optional<std::string> best;
  size_t best_distance = 0;
  for (const auto& candidate : names) {
    // A name that begins with what was typed, or the reverse, is near whatever its length, and
    // nearer than two slips, but not than one. Distances count halves.
    const bool prefix = name.size() >= 3 && candidate.size() >= 3 &&
                        (candidate.starts_with(name) || name.starts_with(candidate));
    const size_t slips = distance(name, candidate);
    const size_t d = prefix && slips > 1 ? 3 : 2 * slips;
    const size_t allowed = std::max<size_t>(1, std::max(name.size(), candidate.size()) / 3);
    const bool something_alike = slips < std::max(name.size(), candidate.size());
    if (something_alike && (prefix || slips <= allowed) && (!best || d < best_distance)) {
      best = candidate;
      best_distance = d;
    }
  }
  return best;
}

}  // namespace lockstep::launch
