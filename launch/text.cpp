#include "launch/text.h"

#include <fmt/format.h>

#include <chrono>

namespace lockstep::launch {

std::string size_text(int64_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); unit++) value /= 1024;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

std::string grouped(int64_t count) {
  const std::string digits = std::to_string(count);
  std::string text;
  for (size_t i = 0; i < digits.size(); i++) {
    const bool begins_group = i > 0 && digits[i - 1] != '-' && (digits.size() - i) % 3 == 0;
    if (begins_group) text += ',';
    text += digits[i];
  }
  return text;
}

std::string count_text(int64_t count) {
  const auto value = static_cast<double>(count);
  if (value >= 1e9) return fmt::format("{:.2f} billion", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f} million", value / 1e6);
  return grouped(count);
}

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
