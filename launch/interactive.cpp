#include "launch/interactive.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <optional>
#include <string>

#include "core/check.h"
#include "launch/signals.h"

namespace lockstep::launch {
namespace {

enum class Phase { starting, typing, writing };
std::atomic<Phase> phase{Phase::starting};
std::atomic<bool> pending{false};
std::atomic<int> wake_up{-1};

void on_interrupt(int number) {
  const bool unseen = pending.exchange(true);
  if (phase == Phase::starting || (unseen && phase == Phase::writing)) end_by_signal(number);
  [[maybe_unused]] const ssize_t written = ::write(wake_up, "", 1);
}

// Without its end; none at the end of input. The terminal forgets what was typed of a line when it
// is interrupted, and hands over whole lines only.
std::optional<std::string> read_line(const Interrupts& interrupts) {
  fmt::print("> ");
  std::fflush(stdout);
  while (interrupts.before_input()) {
    fmt::print("\n> ");
    std::fflush(stdout);
  }
  std::string line;
  if (!std::getline(std::cin, line)) {
    fmt::print("\n");
    return std::nullopt;
  }
  return line;
}

}  // namespace

Interrupts::Interrupts() {
  if (::pipe2(pipe_, O_CLOEXEC | O_NONBLOCK) != 0) {
    throw DeviceError("a pipe for Ctrl-C cannot be made: {}", std::strerror(errno));
  }
  wake_up = pipe_[1];
  watch_signals({SIGINT}, on_interrupt);
}

Interrupts::~Interrupts() {
  phase = Phase::starting;
  wake_up = -1;
  for (const int end : pipe_) ::close(end);
}

bool Interrupts::take() const {
  char bytes[64];
  bool any = false;
  while (::read(pipe_[0], bytes, sizeof(bytes)) > 0) any = true;
  if (any) pending = false;
  return any;
}

bool Interrupts::before_input() const {
  pollfd ready[] = {{pipe_[0], POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
  while (::poll(ready, 2, -1) < 0 && errno == EINTR) {
  }
  return take();
}

void require_terminal() {
  if (isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1) return;
  throw UsageError(
      "--interactive needs a terminal; give prompts of a file by --prompt-file, or one on standard "
      "input");
}

void run_interactive(Generator& generator, const SamplingOptions& options,
                     const BatchLimits& limits, StatisticsPrinter* statistics,
                     const Interrupts& interrupts) {
  fmt::print(stderr,
             "Type the beginning of a text. Ctrl-C stops what is being written, Ctrl-D leaves.\n");
  phase = Phase::typing;
  CompletionOutput output(OutputFormat::text, generator.tokenizer(), statistics);
  for (uint64_t place = 0; const auto prompt = read_line(interrupts); place++) {
    if (prompt->empty()) continue;
    phase = Phase::writing;
    try {
      output.run(generator, {{*prompt, options, place}}, limits, [&] { return interrupts.take(); });
    } catch (const UsageError& error) {  // the prompt's; the next may do
      fmt::print(stderr, "{}\n", error.what());
    }
    phase = Phase::typing;
  }
}

}  // namespace lockstep::launch
