#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "comm/mpi_session.h"

namespace lockstep {

// All-reduces of one size, as nccl-tests counts them: the slowest worker's time of one of several
// that follow each other.
struct AllReduceRate {
  int64_t size_bytes = 0;
  double seconds = 0;
  double algorithm_bytes_per_second = 0;  // algbw: size / time
  double bus_bytes_per_second = 0;        // busbw: algbw * 2 (n - 1) / n, what a link must carry
};

struct AllReduceRates {
  std::vector<AllReduceRate> rates;  // by size; what was measured before a failure, too
  std::string failure;               // of the lowest rank that failed; empty: none
};

// Measures NCCL's all-reduce of fp32 over all workers with this algorithm (nccl_communicator), on
// the current GPU of each: messages from 8 bytes to 256 MiB, up to a size that takes 0.1 s. Takes
// some seconds. What NCCL fails to do, or does not do within the deadline, ends the measurement but
// not the session. The same result on every worker. Collective; defined in a build with CUDA only.
AllReduceRates measure_nccl_all_reduce(MpiSession& session, const std::string& algorithm,
                                       double deadline_s = 60);

}  // namespace lockstep
