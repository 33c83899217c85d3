#pragma once
#include "inference/generator.h"
#include "launch/completions.h"

namespace lockstep::launch {

// Throws UsageError unless standard input and output are a terminal.
void require_terminal();

// Reads a prompt a line and shows how the model continues it, until the end of input (Ctrl-D).
// Ctrl-C ends the text that is being written; where none is, the line that is being typed.
// A prompt's place among those typed keys its random numbers. `statistics`: null for none.
void run_interactive(Generator& generator, const SamplingOptions& options,
                     StatisticsPrinter* statistics);

}  // namespace lockstep::launch
