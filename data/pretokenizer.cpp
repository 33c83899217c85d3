#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/pretokenizer.h"

#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <stdexcept>

#include "core/check.h"
#include "data/pretokenizer_pattern.h"
#include "data/unicode.h"

namespace lockstep {
namespace {

constexpr size_t kJitStackStart = 32 * 1024, kJitStackLimit = 64 * 1024 * 1024;  // bytes
constexpr size_t kMatchSteps = 10'000'000, kMatchStepsPerByte = 16;  // of backtracking, at most

std::string pcre2_message(int code) {
  char text[256];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
  return text;
}

std::shared_ptr<const pcre2_code> compile(const std::string& pattern) {
  struct Context {
    pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
    ~Context() { pcre2_compile_context_free(context); }
  } compile_context;
  CHECK(compile_context.context != nullptr);
  pcre2_set_newline(compile_context.context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE place = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                    &place, compile_context.context);
  if (code == nullptr) {
    throw std::invalid_argument(fmt::format("the pattern does not compile: {} (near '{}')",
                                            pcre2_message(error),
                                            pattern.substr(std::min(place, pattern.size()), 20)));
  }
  // Where there is no JIT for this machine, pcre2_match interprets: slower, the same matches.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return {code, [](const pcre2_code* owned) { pcre2_code_free(const_cast<pcre2_code*>(owned)); }};
}

// What a thread needs to match.
class Matcher {
 public:
  static Matcher& of_this_thread() {
    thread_local Matcher matcher;
    return matcher;
  }

  // Finds the first match that starts at `from` or later. `text` must be valid UTF-8.
  bool find(const pcre2_code* code, std::string_view text, size_t from, size_t* begin,
            size_t* end) {
    // Some patterns take a step or a few for each character of a long run before they give up.
    const size_t limit = kMatchSteps + kMatchStepsPerByte * text.size();
    pcre2_set_match_limit(context_, static_cast<uint32_t>(std::min<size_t>(limit, UINT32_MAX)));
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                  from, PCRE2_NO_UTF_CHECK, data_, context_);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) {
      throw DataError("the tokenizer's pattern fails on this text near byte {}: {}", from,
                      pcre2_message(found));
    }
    *begin = pcre2_get_ovector_pointer(data_)[0];
    *end = pcre2_get_ovector_pointer(data_)[1];
    return true;
  }

 private:
  Matcher()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr)) {
    CHECK(data_ != nullptr && context_ != nullptr);
    if (stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, stack_);
  }
  ~Matcher() {
    pcre2_match_data_free(data_);
    pcre2_match_context_free(context_);
    pcre2_jit_stack_free(stack_);
  }

  pcre2_match_data* data_;
  pcre2_match_context* context_;
  pcre2_jit_stack* stack_;  // null without JIT
};

// Calls visit(begin, end) for each match, by the rules of Oniguruma's and Rust's iterators: an
// empty match right behind the last match does not count.
template <class Visit>
void for_each_match(const pcre2_code* code, std::string_view text, Visit&& visit) {
  Matcher& matcher = Matcher::of_this_thread();
  size_t from = 0, last_end = std::string_view::npos, begin = 0, end = 0;
  while (from <= text.size() && matcher.find(code, text, from, &begin, &end)) {
    if (begin == end && begin == last_end) {
      if (end == text.size()) return;
      from = end + static_cast<size_t>(unicode::first_character(text.substr(end)).length);
      continue;
    }
    visit(begin, end);
    from = last_end = end;
  }
}

std::string quote(std::string_view text) {
  std::string quoted;
  for (const char c : text) {
    const bool special = std::string_view("\\^$.[]|()?*+{}#&-~").find(c) != std::string_view::npos;
    if (special) quoted += '\\';
    quoted += c;
  }
  return quoted;
}

}  // namespace

PreTokenizer::PreTokenizer(std::vector<Step> steps) {
  for (const Step& step : steps) {
    switch (step.kind) {
      case Step::Kind::split:
        add_splitter(step.pattern, step.is_regex, step.behavior, step.invert);
        break;
      case Step::Kind::digits:
        add_splitter("\\p{N}", true,
                     step.individual_digits ? Behavior::isolated : Behavior::contiguous, false);
        break;
      case Step::Kind::byte_level:
        if (step.use_regex) add_splitter(kGpt2Pattern, true, Behavior::isolated, false);
    }
  }
}

void PreTokenizer::add_splitter(std::string_view pattern, bool is_regex, Behavior behavior,
                                bool invert) {
  drops_text_ = drops_text_ || behavior == Behavior::removed;
  // Its words are all of the text: there is nothing between them to keep or to remove.
  const bool words = behavior == Behavior::isolated || (behavior == Behavior::removed && invert);
  if (const auto scanner = WordScanner::of_pattern(pattern); is_regex && words && scanner) {
    splitters_.push_back({scanner, nullptr, nullptr, behavior, invert});
    return;
  }
  needs_code_ = true;
  const std::string usual = is_regex ? to_pcre2(pattern, false) : quote(pattern);
  const std::string newer = is_regex ? to_pcre2(pattern, true) : usual;
  const Code code = compile(usual);
  splitters_.push_back({{}, code, newer == usual ? code : compile(newer), behavior, invert});
}

void PreTokenizer::split_bytes(std::string_view text, PieceSink sink, const void* context) const {
  while (!text.empty()) {
    const size_t valid = unicode::valid_prefix(text);
    if (valid > 0) {
      const std::string_view part = text.substr(0, valid);
      split_valid(0, needs_code_ && unicode::has_additions(part), part, sink, context);
    }
    text.remove_prefix(valid);
    const size_t invalid = unicode::invalid_prefix(text);
    if (invalid > 0) {
      const std::string_view piece = text.substr(0, invalid);
      sink(context, {&piece, 1});
    }
    text.remove_prefix(invalid);
  }
}

// Splits by splitters_[step] and those after it; `newer`: the text has characters of Unicode 15 up.
void PreTokenizer::split_valid(size_t step, bool newer, std::string_view text, PieceSink sink,
                               const void* context) const {
  if (step == splitters_.size()) {
    sink(context, {&text, 1});
    return;
  }
  const Splitter& splitter = splitters_[step];
  if (splitter.scanner) {
    scan_valid(step, newer, text, sink, context);
    return;
  }
  const auto pass_on = [&](size_t begin, size_t end) {
    if (begin < end) split_valid(step + 1, newer, text.substr(begin, end - begin), sink, context);
  };
  if (splitter.behavior == Behavior::isolated) {  // the usual one, without a list of spans
    size_t done = 0;
    const pcre2_code* code = (newer ? splitter.newer_code : splitter.code).get();
    for_each_match(code, text, [&](size_t begin, size_t end) {
      pass_on(done, begin);
      pass_on(begin, end);
      done = end;
    });
    pass_on(done, text.size());
    return;
  }
  for (const Span& span : find_spans(splitter, newer, text)) pass_on(span.begin, span.end);
}

// The same for a splitter that has a scanner.
void PreTokenizer::scan_valid(size_t step, bool newer, std::string_view text, PieceSink sink,
                              const void* context) const {
  std::array<std::string_view, kMaxBatch> words;
  while (!text.empty()) {
    const size_t count = splitters_[step].scanner->scan(text, words);
    const std::string_view last = words[count - 1];
    text.remove_prefix(static_cast<size_t>(last.data() + last.size() - text.data()));
    if (step + 1 == splitters_.size()) {
      sink(context, {words.data(), count});
      continue;
    }
    for (size_t i = 0; i < count; i++) split_valid(step + 1, newer, words[i], sink, context);
  }
}

// The spans that the splitter leaves, in order.
std::vector<PreTokenizer::Span> PreTokenizer::find_spans(const Splitter& splitter, bool newer,
                                                         std::string_view text) {
  std::vector<Span> all;
  size_t done = 0;
  const auto add = [&](size_t begin, size_t end, bool matched) {
    all.push_back({begin, end, matched != splitter.invert});
    done = end;
  };
  const pcre2_code* code = (newer ? splitter.newer_code : splitter.code).get();
  for_each_match(code, text, [&](size_t begin, size_t end) {
    if (done < begin) add(done, begin, false);
    add(begin, end, true);
  });
  if (done < text.size()) add(done, text.size(), false);

  std::vector<Span> spans;
  if (splitter.behavior == Behavior::removed) {
    std::copy_if(all.begin(), all.end(), std::back_inserter(spans),
                 [](const Span& span) { return !span.matched; });
    return spans;
  }
  // A span joins the one that was looked at before it, or stands by itself. Merging with the next
  // is merging with the previous, from the end.
  const bool backwards = splitter.behavior == Behavior::merged_with_next;
  if (backwards) std::reverse(all.begin(), all.end());
  bool previous_matched = false;
  for (const Span& span : all) {
    const bool joins = splitter.behavior == Behavior::contiguous
                           ? span.matched == previous_matched
                           : span.matched && !previous_matched;
    if (joins && !spans.empty()) {
      spans.back().begin = std::min(spans.back().begin, span.begin);
      spans.back().end = std::max(spans.back().end, span.end);
    } else {
      spans.push_back(span);
    }
    previous_matched = span.matched;
  }
  if (backwards) std::reverse(spans.begin(), spans.end());
  return spans;
}

}  // namespace lockstep
