#include "trainer/progress.h"

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
#include <vector>

#include "core/text.h"

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

int terminal_width(int terminal) {
  winsize size{};
  return ioctl(terminal, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// What the line says, in order, and which goes first where it does not fit.
struct Word {
  std::string text;
  int rank;  // the highest goes first
};

std::vector<Word> words(const ProgressStatus& s) {
  const int digits = static_cast<int>(std::to_string(s.steps).size());
  std::vector<Word> words;
  words.push_back({fmt::format("step {:{}}/{}", s.step, digits, s.steps), 0});
  // Losses and norms are not negative, but a NaN may be, and its sign says nothing.
  words.push_back({fmt::format("loss {:.4f}", std::abs(s.loss)), 1});
  words.push_back({s.skipped ? "skipped" : fmt::format("lr {:.2e}", s.learning_rate), 4});
  words.push_back({fmt::format("grad norm {:.2f}", std::abs(s.grad_norm)), 5});
  words.push_back({grouped(std::llround(s.tokens_per_second)) + " tokens/s", 3});
  // Above 1 something else was busy while the peak was measured, and the share says nothing.
  if (s.peak_share > 0 && s.peak_share <= 1) {
    words.push_back({fmt::format("{:.0f} % of peak", 100 * s.peak_share), 6});
  }
  if (s.seconds_left > 0) words.push_back({duration_text(s.seconds_left) + " left", 2});
  return words;
}

std::string joined(const std::vector<Word>& words) {
  std::string line;
  for (const Word& word : words) line += (line.empty() ? "" : "  ") + word.text;
  return line;
}

}  // namespace

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::min(seconds, 1e12)));
  if (whole >= 3600) {
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string progress_text(const ProgressStatus& status) { return joined(words(status)); }

std::string live_line(const ProgressStatus& status, int width) {
  constexpr int kFrame = 4;        // "[] " and the cursor
  constexpr int kUsualText = 100;  // columns
  const int bar = std::clamp(width - kUsualText - kFrame, 8, 30);
  auto fitting = words(status);
  while (fitting.size() > 1 && static_cast<int>(joined(fitting).size()) + bar + kFrame > width) {
    fitting.erase(std::max_element(fitting.begin(), fitting.end(),
                                   [](const Word& a, const Word& b) { return a.rank < b.rank; }));
  }
  const double share =
      status.steps > 0 ? static_cast<double>(status.step) / static_cast<double>(status.steps) : 0;
  const int full = static_cast<int>(std::clamp(share, 0.0, 1.0) * bar);
  return fmt::format("[{:#<{}}{:-<{}}] {}", "", full, "", bar - full, joined(fitting));
}

Progress::Progress(bool shown, int64_t log_every)
    : shown_(shown), log_every_(std::max<int64_t>(1, log_every)), terminal_(-1) {
  if (shown) terminal_ = open_terminal();
}

Progress::~Progress() {
  if (drawn_) fmt::print(stderr, "\n");
  if (terminal_ >= 0) close(terminal_);
}

void Progress::show(const ProgressStatus& status) {
  if (!shown_) return;
  if (terminal_ < 0) {
    if (status.step % log_every_ == 0 || status.step == status.steps) {
      spdlog::info("{}", progress_text(status));
    }
    return;
  }
  fmt::print(stderr, "\r\x1b[K{}", live_line(status, terminal_width(terminal_)));
  std::fflush(stderr);
  drawn_ = true;
}

void Progress::note(const std::string& text) {
  if (!shown_) return;
  clear();
  spdlog::info("{}", text);
}

void Progress::clear() {
  if (!drawn_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace lockstep
