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

namespace lockstep::launch {
namespace {

std::atomic<bool> pending{false}, writing{false};
std::atomic<int> wake_up{-1};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

// A second one while the first is not yet seen, in a long prompt say, ends the program.
void on_interrupt(int number) {
  if (pending.exchange(true) && writing) {
    signal(number, SIG_DFL);
    raise(number);
  }
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(wake_up, "", 1);
  errno = error;
}

// Ctrl-C while this lives. It goes through a pipe, which can be waited for together with the
// terminal: whichever thread takes the signal, at whatever moment, none is missed.
class Interrupts {
 public:
  Interrupts() {
    if (::pipe2(pipe_, O_CLOEXEC | O_NONBLOCK) != 0) {
      throw DeviceError("a pipe for Ctrl-C cannot be made: {}", std::strerror(errno));
    }
    wake_up = pipe_[1];
    struct sigaction action {};
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &before_);
  }
  ~Interrupts() {
    sigaction(SIGINT, &before_, nullptr);
    for (const int end : pipe_) ::close(end);
  }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Whether there was one since the last call.
  bool take() const {
    char bytes[64];
    bool any = false;
    while (::read(pipe_[0], bytes, sizeof(bytes)) > 0) any = true;
    if (any) pending = false;
    return any;
  }

  // Waits for one, or for input. True: an interrupt, taken.
  bool before_input() const {
    pollfd ready[] = {{pipe_[0], POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    while (::poll(ready, 2, -1) < 0 && errno == EINTR) {
    }
    return take();
  }

 private:
  int pipe_[2];
  struct sigaction before_ {};
};

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

void require_terminal() {
  if (isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1) return;
  throw UsageError(
      "--interactive needs a terminal; give prompts of a file by --prompt-file, or one on standard "
      "input");
}

void run_interactive(Generator& generator, const SamplingOptions& options,
                     StatisticsPrinter* statistics) {
  fmt::print(stderr,
             "Type the beginning of a text. Ctrl-C stops what is being written, Ctrl-D leaves.\n");
  const Interrupts interrupts;
  CompletionOutput output(OutputFormat::text, generator.tokenizer(), statistics);
  for (uint64_t place = 0; const auto prompt = read_line(interrupts); place++) {
    if (prompt->empty()) continue;
    writing = true;
    try {
      output.run(generator, {{*prompt, options, place}}, BatchLimits(),
                 [&] { return interrupts.take(); });
    } catch (const UsageError& error) {  // the prompt's; the next may do
      fmt::print(stderr, "{}\n", error.what());
    }
    writing = false;
  }
}

}  // namespace lockstep::launch
