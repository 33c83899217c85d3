#pragma once
#include <functional>
#include <vector>

namespace lockstep::launch {

// From now on these signals interrupt no thread: one of its own waits for them, and calls
// `on_signal`. To be called before other threads are started.
void watch_signals(const std::vector<int>& numbers, std::function<void(int number)> on_signal);

// SIGTERM, SIGINT and SIGUSR1 ask the program to save and return (stop_signal, and trainer's
// request_stop), from now on, start-up included; to be called before other threads are started. A
// second one ends the process at once, with the signal's usual status.
void stop_on_signals();

// The signal that asked for it; 0 when none has come.
int stop_signal();

// Ends the process with the signal's usual status.
[[noreturn]] void end_by_signal(int number);

}  // namespace lockstep::launch
