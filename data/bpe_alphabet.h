#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

// How vocabulary files print bytes (Radford et al., 2019: `bytes_to_unicode`): each byte as one
// visible character, itself where it is a visible character of Latin-1, else the next of U+0100,
// U+0101, ... in the order of bytes.
uint32_t printed_byte(uint8_t byte);

// The 256 bytes in the order of their printed characters' code points.
const std::array<uint8_t, 256>& bytes_in_printed_order();

std::string print_bytes(std::string_view bytes);

// The bytes that a printed token stands for; none when one of its characters stands for no byte.
std::optional<std::string> parse_printed(std::string_view printed);

}  // namespace lockstep
