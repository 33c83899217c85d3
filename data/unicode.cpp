#include "data/unicode.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace lockstep::unicode {
namespace {

uint8_t byte_at(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool is_continuation(std::string_view text, size_t i) {
  return i < text.size() && (byte_at(text, i) & 0xC0) == 0x80;
}

// Length of the UTF-8 character at byte i, 0 when there is none.
size_t character_length(std::string_view text, size_t i) {
  const uint8_t lead = byte_at(text, i);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4 || !is_continuation(text, i + 1)) return 0;
  if (lead < 0xE0) return 2;
  const uint8_t second = byte_at(text, i + 1);
  if (!is_continuation(text, i + 2)) return 0;
  if (lead < 0xF0) {
    const bool overlong = lead == 0xE0 && second < 0xA0;
    const bool surrogate = lead == 0xED && second >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  const bool overlong = lead == 0xF0 && second < 0x90;
  const bool too_large = lead == 0xF4 && second >= 0x90;
  return overlong || too_large || !is_continuation(text, i + 3) ? 0 : 4;
}

// The first byte from i on that is not ASCII.
size_t skip_ascii(std::string_view text, size_t i) {
  for (uint64_t eight; i + sizeof eight <= text.size(); i += sizeof eight) {
    std::memcpy(&eight, text.data() + i, sizeof eight);
    if ((eight & 0x8080808080808080u) != 0) break;
  }
  while (i < text.size() && byte_at(text, i) < 0x80) i++;
  return i;
}

}  // namespace

size_t valid_prefix(std::string_view text) {
  size_t i = skip_ascii(text, 0);
  while (i < text.size()) {
    const size_t length = character_length(text, i);
    if (length == 0) break;
    i += length;
    if (length == 1) i = skip_ascii(text, i);
  }
  return i;
}

size_t invalid_prefix(std::string_view text) {
  size_t i = 0;
  while (i < text.size() && character_length(text, i) == 0) i++;
  return i;
}

void append_utf8(std::string& out, uint32_t code) {
  const auto add = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | code >> 6);
    add(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    add(0xE0 | code >> 12);
    add(0x80 | (code >> 6 & 0x3F));
    add(0x80 | (code & 0x3F));
  } else {
    add(0xF0 | code >> 18);
    add(0x80 | (code >> 12 & 0x3F));
    add(0x80 | (code >> 6 & 0x3F));
    add(0x80 | (code & 0x3F));
  }
}

bool is_white_space(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

bool has_additions(std::string_view text) {
  static const std::vector<std::pair<uint32_t, uint32_t>> kRanges = [] {
    std::vector<std::pair<uint32_t, uint32_t>> ranges;
    for (const Addition& addition : additions()) ranges.emplace_back(addition.last, addition.first);
    std::sort(ranges.begin(), ranges.end());
    return ranges;
  }();
  static const uint32_t kFirst =
      std::min_element(kRanges.begin(), kRanges.end(), [](const auto& a, const auto& b) {
        return a.second < b.second;
      })->second;
  for (size_t i = skip_ascii(text, 0); i < text.size(); i = skip_ascii(text, i)) {
    const Character character = first_character(text.substr(i));
    i += static_cast<size_t>(character.length);
    if (character.code < kFirst) continue;
    const auto range = std::lower_bound(kRanges.begin(), kRanges.end(),
                                        std::make_pair(character.code, uint32_t{0}));
    if (range != kRanges.end() && character.code >= range->second) return true;
  }
  return false;
}

}  // namespace lockstep::unicode
