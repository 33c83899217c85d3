#pragma once

namespace lockstep::launch {

// The program: finds the subcommand, starts MPI where it is needed, runs it, and turns errors into
// one or two lines on stderr and an exit code (core/check.h). An error that all workers share is
// printed by one.
int run_program(int argc, char** argv);

}  // namespace lockstep::launch
