#pragma once
#include <vector>

#include "comm/mpi_session.h"

namespace lockstep {

// What passes between two workers, the caller being one of them.
struct PairRate {
  int peer = 0;
  double latency_s = 0;         // of a message of 8 bytes, one way
  double bytes_per_second = 0;  // of large messages, one way
};

// Sends messages between every two of `ranks` (the same list on every worker), both ways in turn,
// and times them: the shortest of several. Pairs that have no worker in common measure at the same
// time, as they will talk. Returns the calling worker's pairs with those of higher rank; takes
// about 0.1 s for each of `ranks`, more over slow links. Collective over all workers.
//
// Throws DeviceError, naming the peer, when a message does not arrive within deadline_s.
std::vector<PairRate> measure_pairs(MpiSession& session, const std::vector<int>& ranks,
                                    double deadline_s = 60);

}  // namespace lockstep
