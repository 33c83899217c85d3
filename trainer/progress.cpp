#include "trainer/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/text.h"

namespace lockstep {
namespace {

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

}  // namespace

std::string progress_text(const ProgressStatus& status) { return joined(words(status)); }

std::string live_line(const ProgressStatus& status, int width) {
  const double share =
      status.steps > 0 ? static_cast<double>(status.step) / static_cast<double>(status.steps) : 0;
  return bar_line(share, words(status), width);
}

Progress::Progress(bool shown, int64_t log_every)
    : line_(shown), log_every_(std::max<int64_t>(1, log_every)) {}

void Progress::show(const ProgressStatus& status) {
  if (line_.on_terminal()) {
    line_.draw(live_line(status, line_.width()));
  } else if (status.step % log_every_ == 0 || status.step == status.steps) {
    line_.note(progress_text(status));
  }
}

void Progress::note(const std::string& text) { line_.note(text); }

}  // namespace lockstep
