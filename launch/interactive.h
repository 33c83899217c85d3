#pragma once
#include "inference/generator.h"
#include "launch/completions.h"

namespace lockstep::launch {

// Ctrl-C, to be asked for: it ends the program only before run_interactive, and when it comes twice
// while a text is written that does not end at once (in a long prompt, say). To be made once,
// before other threads are started. It goes through a pipe, which can be waited for together with
// the terminal, so that none is missed.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Whether there was one since the last call.
  bool take() const;
  // Waits for one, or for input. True: an interrupt, taken.
  bool before_input() const;

 private:
  int pipe_[2];
};

// Throws UsageError unless standard input and output are a terminal.
void require_terminal();

// Reads a prompt a line and shows how the model continues it, until the end of input (Ctrl-D).
// Ctrl-C ends the text that is being written; where none is, the line that is being typed.
// A prompt's place among those typed keys its random numbers. `statistics`: null for none.
void run_interactive(Generator& generator, const SamplingOptions& options,
                     const BatchLimits& limits, StatisticsPrinter* statistics,
                     const Interrupts& interrupts);

}  // namespace lockstep::launch
