#pragma once
#include <functional>
#include <string>
#include <vector>

#include "comm/mpi_session.h"
#include "core/check.h"
#include "launch/options.h"

namespace lockstep::launch {

using Arguments = std::vector<std::string>;

// A subcommand. Under mpirun every worker runs it; those that are not collective get a session of
// one worker or none.
struct Command {
  std::string name, summary;
  // Whether it works on several workers; `session` is never null then.
  bool (*collective)(const Arguments& arguments);
  ExitCode (*run)(const Arguments& arguments, MpiSession* session);
  // Whether SIGTERM, SIGINT and SIGUSR1 ask it to save and return (launch/signals.h).
  bool (*stops)(const Arguments& arguments);
};

ExitCode run_prepare(const Arguments& arguments, MpiSession* session);
ExitCode run_train(const Arguments& arguments, MpiSession* session);
ExitCode run_generate(const Arguments& arguments, MpiSession* session);
bool generate_is_collective(const Arguments& arguments);  // under mpirun
bool generate_stops(const Arguments& arguments);          // with --output
ExitCode run_evaluate(const Arguments& arguments, MpiSession* session);
ExitCode run_checkpoint(const Arguments& arguments, MpiSession* session);
bool checkpoint_is_collective(const Arguments& arguments);  // `verify --replay` is
// `checkpoint verify --replay A B`, with the arguments behind `verify`.
ExitCode run_replay(const Arguments& arguments, MpiSession& session);
// `checkpoint quantize PATH ...`, with the arguments behind `quantize`.
ExitCode run_quantize(const Arguments& arguments);
ExitCode run_status(const Arguments& arguments, MpiSession* session);
ExitCode run_doctor(const Arguments& arguments, MpiSession* session);

inline bool first_worker(const MpiSession* session) {
  return session == nullptr || session->rank() == 0;
}

// run_together where there is a session (comm/agreement.h); else f alone.
void on_every_worker(MpiSession* session, const std::function<void()>& f);

bool wants_help(const Arguments& arguments);
ExitCode show_help(const OptionTable& table, const MpiSession* session);  // on the first worker

}  // namespace lockstep::launch
