#include "data/bpe_alphabet.h"

#include <algorithm>

#include "data/unicode.h"

namespace lockstep {
namespace {

constexpr int kPrintedEnd = 0x100 + 68;  // 68 bytes are not visible characters of Latin-1

struct Alphabet {
  std::array<uint32_t, 256> printed;
  std::array<int, kPrintedEnd> byte_of;  // -1: stands for none
  std::array<uint8_t, 256> in_printed_order;
};

const Alphabet& alphabet() {
  static const Alphabet kAlphabet = [] {
    Alphabet result;
    result.byte_of.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; byte++) {
      const bool visible = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
      result.printed[byte] = visible ? byte : next++;
      result.byte_of[result.printed[byte]] = static_cast<int>(byte);
      result.in_printed_order[byte] = static_cast<uint8_t>(byte);
    }
    std::sort(result.in_printed_order.begin(), result.in_printed_order.end(),
              [&](uint8_t a, uint8_t b) { return result.printed[a] < result.printed[b]; });
    return result;
  }();
  return kAlphabet;
}

}  // namespace

uint32_t printed_byte(uint8_t byte) { return alphabet().printed[byte]; }

const std::array<uint8_t, 256>& bytes_in_printed_order() { return alphabet().in_printed_order; }

std::string print_bytes(std::string_view bytes) {
  std::string printed;
  for (const char byte : bytes) {
    unicode::append_utf8(printed, printed_byte(static_cast<uint8_t>(byte)));
  }
  return printed;
}

std::optional<std::string> parse_printed(std::string_view printed) {
  std::string bytes;
  while (!printed.empty()) {
    const unicode::Character character = unicode::first_character(printed);
    if (character.code >= kPrintedEnd || alphabet().byte_of[character.code] < 0) return {};
    bytes.push_back(static_cast<char>(alphabet().byte_of[character.code]));
    printed.remove_prefix(static_cast<size_t>(character.length));
  }
  return bytes;
}

}  // namespace lockstep
