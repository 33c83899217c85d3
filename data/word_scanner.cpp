#include "data/word_scanner.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cstdint>

#include "data/pretokenizer_pattern.h"
#include "data/unicode.h"

namespace lockstep {
namespace {

using namespace unicode;

constexpr uint8_t kLetter = kUppercase | kLowercase | kCaseless;

// What the patterns are made of. Each function takes a place in a text and returns where what it
// finds there ends.
class Text {
 public:
  Text(const uint8_t* classes, const char* end) : classes_(classes), end_(end) {}

  struct Character {
    uint8_t classes;  // one bit
    const char* next;
  };

  Character character(const char* at) const {
    const auto byte = static_cast<uint8_t>(*at);
    if (byte < 0x80) return {classes_[byte], at + 1};
    const unicode::Character found = first_character({at, static_cast<size_t>(end_ - at)});
    return {classes_[found.code], at + found.length};
  }

  bool is(const char* at, uint8_t classes) const {
    return at < end_ && (character(at).classes & classes) != 0;
  }

  // \p{...}*
  const char* skip(const char* at, uint8_t classes) const {
    while (at < end_) {
      const Character c = character(at);
      if ((c.classes & classes) == 0) break;
      at = c.next;
    }
    return at;
  }

  // The same for classes that hold letters: those of ASCII sixteen at a time.
  template <uint8_t classes>
  const char* skip_letters(const char* at) const {
#if defined(__SSE2__)
    constexpr bool kBothCases = (classes & kUppercase) != 0;
    while (end_ - at >= 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
      const __m128i folded = kBothCases ? _mm_or_si128(bytes, _mm_set1_epi8(0x20)) : bytes;
      const __m128i letters = _mm_and_si128(_mm_cmpgt_epi8(folded, _mm_set1_epi8('a' - 1)),
                                            _mm_cmplt_epi8(folded, _mm_set1_epi8('z' + 1)));
      const auto others = static_cast<uint32_t>(_mm_movemask_epi8(letters)) ^ 0xFFFFu;
      at += others == 0 ? 16 : std::countr_zero(others);
      if (others == 0) continue;
      if (static_cast<uint8_t>(*at) < 0x80) return at;
      const Character c = character(at);
      if ((c.classes & classes) == 0) return at;
      at = c.next;
    }
#endif
    return skip(at, classes);
  }

  // [\r\n]*, or with a slash [\r\n/]*
  const char* skip_newlines(const char* at, bool slashes) const {
    while (at < end_ && (is_newline(*at) || (slashes && *at == '/'))) at++;
    return at;
  }

  static bool is_newline(char c) { return c == '\n' || c == '\r'; }

  // \p{N}{1,count}
  const char* numbers(const char* at, int count) const {
    for (; count > 0 && is(at, kNumber); count--) at = character(at).next;
    return at;
  }

  // ` ?[^\s\p{L}\p{N}]+`, or null
  const char* punctuation(const char* at) const {
    if (*at == ' ') at++;
    const char* end = skip(at, kOther | kMark);
    return end == at ? nullptr : end;
  }

  // 's|'t|'re|'ve|'m|'ll|'d, or null. `any_case` is (?i), to which U+017F is an s.
  const char* contraction(const char* at, bool any_case) const {
    if (end_ - at < 2 || *at != '\'') return nullptr;
    const auto letter = [&](int i) { return any_case && at[i] < 'a' ? at[i] | 0x20 : at[i]; };
    switch (letter(1)) {
      case 's':
      case 't':
      case 'm':
      case 'd':
        return at + 2;
      default:
        break;
    }
    if (end_ - at < 3) return nullptr;
    const bool long_s = any_case && at[1] == '\xC5' && at[2] == '\xBF';
    const bool two = ((letter(1) == 'r' || letter(1) == 'v') && letter(2) == 'e') ||
                     (letter(1) == 'l' && letter(2) == 'l');
    return long_s || two ? at + 3 : nullptr;
  }

  // A run of white space. By newlines: up to its last newline (`\s*[\r\n]+`). Else, or without one:
  // all of it at the end of the text; before another character all but its last character
  // (`\s+(?!\S)`), or that character where there is one only.
  const char* white_space(const char* at, bool by_newlines, bool whole_at_end) const {
    const char* behind_newline = nullptr;
    const char* last = at;
    const char* next = at;
    while (next < end_) {
      const Character c = character(next);
      if (c.classes != kWhiteSpace) break;
      last = next;
      next = c.next;
      if (is_newline(*last)) behind_newline = next;
    }
    if (next == end_ && (whole_at_end || !by_newlines)) return next;
    if (by_newlines && behind_newline != nullptr) return behind_newline;
    return next == end_ || last == at ? next : last;
  }

  // [Lu Lt Lm Lo M]*[Ll Lm Lo M]+, or else [Lu Lt Lm Lo M]+[Ll Lm Lo M]*; or null.
  const char* cased_word(const char* at) const {
    const char* behind_caseless = nullptr;
    const char* next = at;
    while (next < end_) {
      const Character c = character(next);
      if ((c.classes & (kUppercase | kCaseless | kMark)) == 0) {
        if (c.classes == kLowercase) {
          return skip_letters<kLowercase | kCaseless | kMark>(c.next);
        }
        break;
      }
      next = c.next;
      if (c.classes != kUppercase) behind_caseless = next;
    }
    // The last character that the second set may have takes its place; upper-case ones after it
    // are given back.
    if (behind_caseless != nullptr) return behind_caseless;
    return next == at ? nullptr : next;
  }

  const char* end() const { return end_; }

 private:
  const uint8_t* classes_;
  const char* end_;
};

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
struct Gpt2 {
  static const char* word_end(const Text& text, const char* at) {
    const char* begin = at + (*at == ' ' && at + 1 < text.end());
    const Text::Character c = text.character(begin);
    if ((c.classes & kLetter) != 0) return text.skip_letters<kLetter>(c.next);
    if (const char* end = text.contraction(at, false)) return end;
    if (c.classes == kNumber) return text.skip(c.next, kNumber);
    if (c.classes != kWhiteSpace) return text.skip(c.next, kOther | kMark);
    return text.white_space(at, false, false);
  }
};

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,kNumbers}| ?[^\s\p{L}\p{N}]+[\r\n]*
// |\s*[\r\n]+|\s+(?!\S)|\s+; kWholeAtEnd: with \s+\z before \s*[\r\n]+
template <int kNumbers, bool kWholeAtEnd>
struct Llama3 {
  static const char* word_end(const Text& text, const char* at) {
    const Text::Character c = text.character(at);
    if ((c.classes & kLetter) != 0) return text.skip_letters<kLetter>(c.next);
    if (const char* end = text.contraction(at, true)) return end;
    if (c.classes == kNumber) return text.numbers(at, kNumbers);
    if (!Text::is_newline(*at) && text.is(c.next, kLetter)) {
      return text.skip_letters<kLetter>(c.next);
    }
    if (const char* end = text.punctuation(at)) return text.skip_newlines(end, false);
    return text.white_space(at, true, kWholeAtEnd);
  }
};

// kCased(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)
// |\s+; kCased: [^\r\n\p{L}\p{N}]? and a cased word, of the first kind if there is one
struct O200k {
  static const char* word_end(const Text& text, const char* at) {
    const Text::Character c = text.character(at);
    if (c.classes == kNumber) return text.numbers(at, 3);
    const char* end = nullptr;
    if ((c.classes & (kLetter | kMark)) != 0) {  // a mark before a word is part of it, or a word
      end = text.cased_word(at);
    } else if (!Text::is_newline(*at)) {
      end = text.cased_word(c.next);
    }
    if (end != nullptr) {
      const char* contraction = text.contraction(end, true);
      return contraction != nullptr ? contraction : end;
    }
    end = text.punctuation(at);
    return end != nullptr ? text.skip_newlines(end, true) : text.white_space(at, true, false);
  }
};

template <class Pattern>
size_t scan_words(std::string_view text, std::span<std::string_view> words) {
  const char* at = text.data();
  const Text rest(character_classes(), at + text.size());
  size_t count = 0;
  while (at < rest.end() && count < words.size()) {
    const char* end = Pattern::word_end(rest, at);
    words[count++] = {at, static_cast<size_t>(end - at)};
    at = end;
  }
  return count;
}

}  // namespace

std::optional<WordScanner> WordScanner::of_pattern(std::string_view pattern) {
  if (pattern == kGpt2Pattern || pattern == kR50kPattern) {
    return WordScanner(scan_words<Gpt2>);
  }
  if (pattern == kCl100kPattern) return WordScanner(scan_words<Llama3<3, true>>);
  if (pattern == kLlama3Pattern) return WordScanner(scan_words<Llama3<3, false>>);
  if (pattern == kQwen2Pattern) return WordScanner(scan_words<Llama3<1, false>>);
  if (pattern == kO200kPattern) return WordScanner(scan_words<O200k>);
  return {};
}

}  // namespace lockstep
