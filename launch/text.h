#pragma once
#include <filesystem>
#include <string>

#include "core/text.h"

// Numbers and times as people read them.
namespace lockstep::launch {

std::string age_text(const std::filesystem::path& written);  // "5 min ago"; empty: cannot be told

}  // namespace lockstep::launch
