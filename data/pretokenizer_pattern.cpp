#include "data/pretokenizer_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "data/unicode.h"

namespace lockstep {
namespace {

constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// The characters with a property that PCRE2 may be too old to know, as items of a class. A property
// of one letter is the union of those that begin with it.
std::string newer_characters(std::string_view property) {
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
  for (const unicode::Addition& addition : unicode::additions()) {
    const bool has =
        addition.property == property || (property.size() == 1 && addition.property.size() == 2 &&
                                          addition.property.starts_with(property));
    if (has) ranges.emplace_back(addition.first, addition.last);
  }
  std::sort(ranges.begin(), ranges.end());
  std::string items;
  for (size_t i = 0; i < ranges.size(); i++) {
    const uint32_t first = ranges[i].first;
    while (i + 1 < ranges.size() && ranges[i + 1].first == ranges[i].second + 1) i++;
    items += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", first, ranges[i].second);
  }
  return items;
}

class Translator {
 public:
  Translator(std::string_view pattern, bool newer) : in_(pattern), newer_(newer) {}

  std::string run() {
    while (at_ < in_.size()) {
      switch (in_[at_]) {
        case '\\':
          begin_atom();
          escape(false);
          break;
        case '[':
          begin_atom();
          character_class();
          break;
        case '(':
          begin_atom();
          groups_.push_back(atom_);
          open_group();
          break;
        case ')':
          if (!groups_.empty()) {
            atom_ = groups_.back();
            groups_.pop_back();
          }
          copy(1);
          break;
        case '{':
          interval();
          break;
        case '*':
        case '+':
        case '?':
        case '|':
          copy(1);
          break;
        default:
          begin_atom();
          copy(1);
          while (at_ < in_.size() && (in_[at_] & 0xC0) == 0x80) copy(1);  // one whole character
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw std::invalid_argument(fmt::format("{} at byte {} is not supported", what, at_));
  }

  bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }

  void copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  void begin_atom() { atom_ = out_.size(); }

  void open_group() {
    if (!next_is("(?")) {
      copy(1);
      return;
    }
    size_t end = at_ + 2;
    while (end < in_.size() && (in_[end] == '-' || is_letter(in_[end]))) end++;
    const std::string_view options = in_.substr(at_ + 2, end - at_ - 2);
    if (options.find('m') != options.npos) refuse("the option m");
    // In Oniguruma an option in the middle encloses the alternatives after it.
    const bool alone = end < in_.size() && in_[end] == ')';
    if (alone && at_ > 0) refuse("an option in the middle of the pattern");
    copy(2);
  }

  void escape(bool in_class) {
    if (at_ + 1 >= in_.size()) refuse("a backslash that ends the pattern");
    const char letter = in_[at_ + 1];
    switch (letter) {
      case 's':
        out_ += in_class ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
        at_ += 2;
        return;
      case 'S':
        if (in_class) refuse("\\S inside brackets");
        out_ += fmt::format("[^{}]", kWhiteSpace);
        at_ += 2;
        return;
      case 'u':
        unicode_escape();
        return;
      case 'p':
      case 'P':
        property(in_class);
        return;
      case 'd':
      case 'D':
        at_ += 2;
        property("Nd", letter == 'D', in_class);
        return;
      case 'x':
        if (in_.substr(at_ + 2).starts_with('{')) {
          copy(std::min(in_.find('}', at_), in_.size() - 1) + 1 - at_);
        } else {
          copy(2);
        }
        return;
      case 'v':  // all vertical white space in PCRE2
        out_ += "\\x0B";
        at_ += 2;
        return;
      case 'b':
        if (!in_class) refuse("\\b");
        copy(2);
        return;
      case 'B':
      case 'h':
      case 'H':
      case 'K':
      case 'R':
      case 'w':
      case 'W':
      case 'X':
      case 'y':
      case 'Y':
        refuse(fmt::format("\\{}", letter));
      default:
        copy(2);
    }
  }

  void unicode_escape() {
    const std::string_view digits = in_.substr(at_ + 2, 4);
    if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos) {
      refuse("\\u without four hexadecimal digits");
    }
    out_ += fmt::format("\\x{{{}}}", digits);
    at_ += 6;
  }

  // \p{L}, \P{L}, \p{^L}, \pL
  void property(bool in_class) {
    bool negated = in_[at_ + 1] == 'P';
    std::string_view name = in_.substr(at_ + 2, 1);
    size_t end = at_ + 3;
    if (name == "{") {
      end = in_.find('}', at_);
      if (end == in_.npos) refuse("an open \\p{");
      name = in_.substr(at_ + 3, end - at_ - 3);
      end++;
    }
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    if (name.empty()) refuse("\\p without a property");
    at_ = end;
    property(name, negated, in_class);
  }

  void property(std::string_view name, bool negated, bool in_class) {
    const std::string ranges = newer_ ? newer_characters(name) : "";
    if (in_class && negated && !ranges.empty()) refuse("a negated property inside brackets");
    const bool brackets = !in_class && !ranges.empty();
    if (brackets) out_ += negated ? "[^" : "[";
    out_ += fmt::format("\\{}{{{}}}", negated && !brackets ? 'P' : 'p', name);
    out_ += ranges;
    if (brackets) out_ += "]";
  }

  void character_class() {
    copy(1);
    if (next_is("^")) copy(1);
    class_items();
    copy(1);
  }

  // Up to the bracket that closes the class.
  void class_items() {
    if (next_is("]")) {
      out_ += "\\]";
      at_++;
    }
    while (at_ < in_.size() && in_[at_] != ']') {
      if (next_is("&&")) refuse("an intersection of character classes");
      if (next_is("[:")) {
        const size_t end = in_.find(":]", at_);
        if (end == in_.npos) refuse("an open character class");
        copy(end + 2 - at_);
      } else if (next_is("[^")) {
        refuse("a negated class inside a character class");
      } else if (next_is("[")) {  // a union: the same as its items here
        at_++;
        class_items();
        at_++;
      } else if (next_is("\\")) {
        escape(true);
      } else {
        copy(1);
      }
    }
    if (at_ == in_.size()) refuse("an open character class");
  }

  // {n}, {n,}, {,m}, {n,m}; a brace that opens none of them is itself.
  void interval() {
    size_t end = at_ + 1;
    while (end < in_.size() && (is_digit(in_[end]) || in_[end] == ',')) end++;
    const bool is_interval = end < in_.size() && in_[end] == '}' && end > at_ + 1;
    if (!is_interval) {
      begin_atom();
      out_ += "\\{";
      at_++;
      return;
    }
    const bool has_comma = in_.substr(at_, end - at_).find(',') != in_.npos;
    if (in_[at_ + 1] == ',') {
      out_ += "{0";
      at_++;
    }
    copy(end + 1 - at_);
    if (next_is("+") || (next_is("?") && !has_comma)) {  // X{n}? is "X n times, or not at all"
      out_.insert(atom_, "(?:");
      out_ += ")";
    }
  }

  std::string_view in_;
  bool newer_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where the last atom starts in out_
  std::vector<size_t> groups_;  // the same, of the groups that are open
};

}  // namespace

std::string to_pcre2(std::string_view pattern, bool newer_characters) {
  return Translator(pattern, newer_characters).run();
}

}  // namespace lockstep
