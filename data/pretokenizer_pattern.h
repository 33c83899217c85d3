#pragma once
#include <string>
#include <string_view>

namespace lockstep {

// Tokenizer files hold patterns in the dialect of Oniguruma (Hugging Face) or of Rust's fancy-regex
// (tiktoken); we match with PCRE2 (UTF, UCP, newline = \n, multiline). Returns the PCRE2 pattern
// that matches the same:
//   \p{L}     with characters that PCRE2 may be too old to know (see below)
//   \d        \p{Nd}
//   \s, \S    the property White_Space, which is not what PCRE2 takes for a space
//   X{n,m}+   X{n,m} repeated, as Oniguruma reads it, not possessive; X{n}? likewise
//   X{,m}     X{0,m}
//   \uHHHH    a character
//   [a[bc]]   a union of character classes: [abc]
//   groups, look-around, other properties: unchanged
// Throws std::invalid_argument, with the reason, for what PCRE2 would read in another way: \w, \b,
// \h, \K, \R, \X, \y, (?m), (?i)
// anywhere but at the start, negated classes inside classes, intersections of classes.
//
// `newer_characters` adds the characters of Unicode 15 to 16; patterns are twice as fast without.
std::string to_pcre2(std::string_view pattern, bool newer_characters);

// GPT-2's: what `ByteLevel` splits by.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace lockstep
