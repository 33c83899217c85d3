#pragma once
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace lockstep {

// MPI from start to end of the process. Construct once, first thing in main; without mpirun the
// program is a world of one worker.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();  // finalizes, unless an exception is leaving: then all workers are aborted (4)
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  Communicator& world() { return *world_; }
  int rank() const;
  int size() const;
  int local_rank() const;  // among the workers of this host
  int local_size() const;
  std::string host() const;
  static std::string library_version();

  // Whether mpirun, or srun with PMI, started this process: told by the environment, before MPI is.
  static bool under_launcher();

  // To be called by a worker that failed: true when every worker does so within grace_s seconds.
  // Then all can leave in good order; otherwise the others know nothing of it, and abort() is due.
  bool all_failed(double grace_s = 2);

  // Ends every worker with this exit code, now. For one worker's failure that the others cannot
  // know of.
  [[noreturn]] void abort(int exit_code);

 private:
  std::unique_ptr<Communicator> world_;
  int local_rank_ = 0, local_size_ = 1;
  int exceptions_at_start_ = 0;
};

}  // namespace lockstep
