#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

// Numbers as people read them.
namespace lockstep::launch {

std::string size_text(int64_t bytes);                        // "1.5 GiB"
std::string grouped(int64_t count);                          // "1,234,567"
std::string count_text(int64_t count);                       // "124.44 million"
std::string age_text(const std::filesystem::path& written);  // "5 min ago"; empty: cannot be told

}  // namespace lockstep::launch
