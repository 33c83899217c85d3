#include "launch/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "launch/text.h"

namespace lockstep::launch {

namespace {

size_t terminal_columns() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

ProgressBar::ProgressBar() : terminal_(isatty(STDERR_FILENO) == 1) {}

void ProgressBar::show(std::string_view phase, int64_t done_bytes, int64_t total_bytes) {
  const auto now = Clock::now();
  const bool new_phase = phase != phase_;
  if (new_phase) {
    clear();
    phase_ = phase;
    phase_start_ = now;
    if (!terminal_) fmt::print(stderr, "{} ({})\n", phase, size_text(total_bytes));
  }
  if (!terminal_ || (!new_phase && now - last_ < std::chrono::milliseconds(100))) return;
  last_ = now;
  const double share =
      total_bytes > 0
          ? std::clamp(static_cast<double>(done_bytes) / static_cast<double>(total_bytes), 0.0, 1.0)
          : 0.0;
  const double seconds = std::chrono::duration<double>(now - phase_start_).count();
  const size_t columns = terminal_columns();
  const size_t width = std::clamp<size_t>(columns, 80, 104) - 72;  // the words take the rest
  const auto filled = static_cast<size_t>(share * static_cast<double>(width));
  std::string line =
      fmt::format("{:<23} [{}{}] {:3.0f} %  {:>10}", phase, std::string(filled, '#'),
                  std::string(width - filled, '-'), 100 * share, size_text(done_bytes));
  if (seconds > 0.5 && share > 0) {
    const auto left = static_cast<int64_t>(seconds / share * (1 - share));
    line += fmt::format("  {}/s  {}:{:02} left",
                        size_text(static_cast<int64_t>(static_cast<double>(done_bytes) / seconds)),
                        left / 60, left % 60);
  }
  // A line that wraps could not be drawn over.
  fmt::print(stderr, "\r\x1b[K{}", line.substr(0, columns - 1));
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::clear() {
  if (drawn_) fmt::print(stderr, "\r\x1b[K");
  drawn_ = false;
}

}  // namespace lockstep::launch
