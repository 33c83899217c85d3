#include "launch/text.h"

#include <fmt/format.h>

#include <chrono>

namespace lockstep::launch {

std::string age_text(const std::filesystem::path& file) {
  std::error_code error;
  const auto written = std::filesystem::last_write_time(file, error);
  if (error) return "";
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(
                       std::filesystem::file_time_type::clock::now() - written)
                       .count();
  if (age < 120) return fmt::format("{} s ago", std::max<int64_t>(age, 0));
  if (age < 2 * 3600) return fmt::format("{} min ago", age / 60);
  if (age < 48 * 3600) return fmt::format("{} h ago", age / 3600);
  return fmt::format("{} days ago", age / 86400);
}

}  // namespace lockstep::launch
