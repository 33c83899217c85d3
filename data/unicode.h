#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep::unicode {

// Bytes at the start of `text` that are whole UTF-8 characters (RFC 3629: no surrogates, no longer
// form than needed, nothing above U+10FFFF).
size_t valid_prefix(std::string_view text);

// Bytes at the start of `text` before the next whole UTF-8 character.
size_t invalid_prefix(std::string_view text);

// The character at the start of `text`, which must be valid UTF-8 and not empty, and its length.
struct Character {
  uint32_t code;
  int length;  // bytes
};
inline Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return uint32_t{static_cast<uint8_t>(text[i])}; };
  const auto bits = [&](size_t i) { return byte(i) & 0x3Fu; };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1Fu) << 6 | bits(1), 2};
  if (lead < 0xF0) return {(lead & 0x0Fu) << 12 | bits(1) << 6 | bits(2), 3};
  return {(lead & 0x07u) << 18 | bits(1) << 12 | bits(2) << 6 | bits(3), 4};
}

void append_utf8(std::string& out, uint32_t code);

// The property White_Space, as Rust and Oniguruma read \s.
bool is_white_space(uint32_t code);

// What the patterns of tokenizers tell characters apart by, as of Unicode 16: each character has
// one bit. Letters are those with a case (Lu and Lt, Ll) and those without (Lm, Lo).
enum CharacterClass : uint8_t {
  kUppercase = 1,
  kLowercase = 2,
  kCaseless = 4,
  kMark = 8,
  kNumber = 16,
  kWhiteSpace = 32,
  kOther = 64,
};
inline constexpr uint32_t kCodePoints = 0x110000;
// The class of each of them.
const uint8_t* character_classes();

// A range of characters newer than Unicode 14 (the oldest that a PCRE2 we build with knows), up to
// Unicode 16, that have a property: a general category of two letters, or the script Han.
struct Addition {
  std::string_view property;
  uint32_t first, last;
};
const std::vector<Addition>& additions();

// True when one of the additions is in `text`, which must be valid UTF-8.
bool has_additions(std::string_view text);

}  // namespace lockstep::unicode
