#include "launch/signals.h"

#include <signal.h>
#include <time.h>

#include <atomic>
#include <cstdlib>
#include <thread>
#include <utility>

#include "trainer/trainer.h"

namespace lockstep::launch {
namespace {

std::atomic<int64_t> first_signal_ms{0};
std::atomic<int> first_signal{0};
static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

int64_t now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000 + 1;
}

// A launcher and a batch system may both pass on one request, so a signal that follows the first
// within this time counts as the same.
constexpr int64_t kSameRequestMs = 250;

void ask_to_stop(int number) {
  int64_t first = 0;
  if (first_signal_ms.compare_exchange_strong(first, now_ms())) {
    first_signal = number;
    request_stop();
  } else if (now_ms() - first > kSameRequestMs) {
    end_by_signal(number);
  }
}

}  // namespace

// No handler: the frame of one would stand on the stack of a thread that computes, and generated
// code of oneDNN's products keeps values below the stack pointer, further than a handler spares
// (seen: a training crashed or computed nonsense at a signal). So all threads block the signals, as
// they do who are started from here on, and one of its own waits for them.
void watch_signals(const std::vector<int>& numbers, std::function<void(int)> on_signal) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : numbers) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals, on_signal = std::move(on_signal)] {
    while (true) {
      int number = 0;
      if (sigwait(&signals, &number) == 0) on_signal(number);
    }
  }).detach();
}

void stop_on_signals() { watch_signals({SIGTERM, SIGINT, SIGUSR1}, ask_to_stop); }

int stop_signal() { return first_signal; }

void end_by_signal(int number) {
  signal(number, SIG_DFL);
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, number);
  pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
  raise(number);
  std::_Exit(128 + number);
}

}  // namespace lockstep::launch
