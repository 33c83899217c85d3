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
// Those of tiktoken's encodings, Llama 3 and Qwen 2, in Oniguruma's words (\z for the end of the
// text).
inline constexpr std::string_view kR50kPattern =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\z|\s+(?!\S)|\s)";
inline constexpr std::string_view kCl100kPattern =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace lockstep
