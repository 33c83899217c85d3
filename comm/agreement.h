#pragma once
#include <functional>

#include "comm/communicator.h"
#include "core/check.h"

namespace lockstep {

// An error that every worker throws at the same place: one of them prints it, and all can leave in
// good order.
class SharedError : public Error {
 public:
  using Error::Error;
};

// Calls f on this worker; when it throws on any worker, every worker throws SharedError with the
// message and exit code of the lowest rank that failed. Collective; f itself may hold collective
// operations only where it cannot throw before them on some workers alone.
void run_together(Communicator& communicator, const std::function<void()>& f);

// What every worker has to say, by rank, on every worker. Texts without zero bytes. Collective.
std::vector<std::string> said_by_all(Communicator& communicator, const std::string& mine);

}  // namespace lockstep
