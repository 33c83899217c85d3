#pragma once
#include "comm/mpi_session.h"

namespace lockstep {

extern MpiSession* session;  // of the test program, set by its main

inline Communicator& world() { return session->world(); }

}  // namespace lockstep
