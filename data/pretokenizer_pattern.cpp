#include "data/pretokenizer_pattern.h"

#include <fmt/format.h>

#include <stdexcept>
#include <vector>

namespace lockstep {
namespace {

constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

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
    if (next_is("(?")) {
      for (size_t i = at_ + 2; i < in_.size() && (in_[i] == '-' || is_letter(in_[i])); i++) {
        if (in_[i] == 'm') refuse("the option m");
      }
      copy(2);
      return;
    }
    copy(1);
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
        property();
        return;
      case 'b':
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

  void property() {
    const size_t end = in_.find('}', at_);
    if (at_ + 2 < in_.size() && in_[at_ + 2] == '{' && end == in_.npos) refuse("an open \\p{");
    copy(at_ + 2 < in_.size() && in_[at_ + 2] == '{' ? end + 1 - at_ : 2);
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
    copy(end + 1 - at_);
    if (next_is("+")) {
      out_.insert(atom_, "(?:");
      out_ += ")";
    }
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where the last atom starts in out_
  std::vector<size_t> groups_;  // the same, of the groups that are open
};

}  // namespace

std::string to_pcre2(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace lockstep
