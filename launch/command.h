#pragma once
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
};

ExitCode run_prepare(const Arguments& arguments, MpiSession* session);
ExitCode run_train(const Arguments& arguments, MpiSession* session);
ExitCode run_generate(const Arguments& arguments, MpiSession* session);
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

bool wants_help(const Arguments& arguments);
ExitCode show_help(const OptionTable& table, const MpiSession* session);  // on the first worker

}  // namespace lockstep::launch
