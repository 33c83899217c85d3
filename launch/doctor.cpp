#include "launch/command.h"
#include "launch/machine.h"

namespace lockstep::launch {

ExitCode run_doctor(const Arguments& arguments, MpiSession* session) {
  OptionTable table("lockstep doctor", "[OPTION]...", "Tells what this machine has.");
  if (!parse_or_help(table, arguments, session)) return ExitCode::done;
  const Machine machine = this_machine();
  const int threads = default_threads(machine, *session);
  if (session->rank() == 0) {
    fmt::print("processor  {}, {} ({} cores, {} threads a worker)\n", machine.processor,
               machine.instruction_set, machine.cores.size(), threads);
  }
  return ExitCode::done;
}

}  // namespace lockstep::launch
