#pragma once
#include <mpi.h>

#include <string_view>

#include "core/check.h"

namespace lockstep {

// Throws DeviceError with the library's text unless `code` is MPI_SUCCESS. `operation` is what this
// program was doing, in plain words.
void check_mpi(int code, std::string_view operation);

}  // namespace lockstep

#define CHECK_MPI(call, operation) ::lockstep::check_mpi((call), operation)
