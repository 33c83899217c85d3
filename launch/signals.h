#pragma once

namespace lockstep::launch {

// SIGTERM, SIGINT and SIGUSR1 ask the training to save and return (trainer's request_stop), from
// now on, start-up included; to be called before other threads are started. A second one ends the
// process at once, with the signal's usual status.
void stop_on_signals();

// The signal that asked for it; 0 when none has come.
int stop_signal();

// Ends the process with the signal's usual status.
[[noreturn]] void end_by_signal(int number);

}  // namespace lockstep::launch
