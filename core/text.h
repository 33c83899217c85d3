#pragma once
#include <cstdint>
#include <string>

// Numbers as people read them.
namespace lockstep {

std::string size_text(int64_t bytes);   // "1.5 GiB"
std::string grouped(int64_t count);     // "1,234,567"
std::string count_text(int64_t count);  // "124.44 million"; below a million as grouped
std::string plural(int64_t count, const char* noun);  // "1 worker", "2 workers"

}  // namespace lockstep
