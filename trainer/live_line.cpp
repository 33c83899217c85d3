#include "trainer/live_line.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>

namespace lockstep {
namespace {

// A descriptor of the terminal that stderr ends up on, or -1. Under mpirun a worker's stderr is a
// pipe to mpirun, which copies it to its own.
int open_terminal() {
  if (isatty(STDERR_FILENO)) return dup(STDERR_FILENO);
  struct stat status {};
  if (fstat(STDERR_FILENO, &status) != 0 || !S_ISFIFO(status.st_mode)) return -1;
  const std::string parent = fmt::format("/proc/{}", getppid());
  std::string program;
  std::getline(std::ifstream(parent + "/comm"), program);
  constexpr std::array kLaunchers{"mpirun", "mpiexec", "orterun", "prterun", "mpiexec.hydra"};
  if (std::find(kLaunchers.begin(), kLaunchers.end(), program) == kLaunchers.end()) return -1;
  const int terminal = open((parent + "/fd/2").c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (terminal >= 0 && !isatty(terminal)) {
    close(terminal);
    return -1;
  }
  return terminal;
}

}  // namespace

std::string joined(const std::vector<Word>& words) {
  std::string line;
  for (const Word& word : words) line += (line.empty() ? "" : "  ") + word.text;
  return line;
}

std::string bar_line(double share, std::vector<Word> words, int width) {
  constexpr int kFrame = 4;        // "[] " and the cursor
  constexpr int kUsualText = 100;  // columns
  const int bar = std::clamp(width - kUsualText - kFrame, 8, 30);
  while (words.size() > 1 && static_cast<int>(joined(words).size()) + bar + kFrame > width) {
    words.erase(std::max_element(words.begin(), words.end(),
                                 [](const Word& a, const Word& b) { return a.rank < b.rank; }));
  }
  const int full = static_cast<int>(std::clamp(share, 0.0, 1.0) * bar);
  return fmt::format("[{:#<{}}{:-<{}}] {}", "", full, "", bar - full, joined(words));
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::min(seconds, 1e12)));
  if (whole >= 3600) {
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

LiveLine::LiveLine(bool shown) : shown_(shown) {
  if (shown) terminal_ = open_terminal();
}

LiveLine::~LiveLine() {
  if (drawn_) fmt::print(stderr, "\n");
  if (terminal_ >= 0) close(terminal_);
}

int LiveLine::width() const {
  winsize size{};
  return ioctl(terminal_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void LiveLine::draw(const std::string& line) {
  fmt::print(stderr, "\r\x1b[K{}", line);
  std::fflush(stderr);
  drawn_ = true;
}

void LiveLine::note(const std::string& text) {
  if (!shown_) return;
  clear();
  spdlog::info("{}", text);
}

void LiveLine::clear() {
  if (!drawn_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace lockstep
