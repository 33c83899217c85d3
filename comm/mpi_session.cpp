#include "comm/mpi_session.h"

#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <thread>

#include "comm/check_mpi.h"
#include "comm/mpi_communicator.h"

namespace lockstep {

MpiSession::MpiSession(int* argc, char*** argv) : exceptions_at_start_(std::uncaught_exceptions()) {
  // Open MPI spins while it waits; let it yield, because the threads that compute want every core.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", /*overwrite=*/0);
  int provided = 0;
  CHECK_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided), "starting MPI");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_MULTIPLE) {
    throw DeviceError(
        "this MPI library does not support MPI_THREAD_MULTIPLE, which reducing gradients during "
        "backward needs: use one that is built with it ({})",
        library_version());
  }
  MPI_Comm host;
  CHECK_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
            "finding the workers of this host");
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_size(host, &local_size_);
  MPI_Comm_free(&host);
  world_ = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD);
}

MpiSession::~MpiSession() {
  // Finalizing is collective, and the others do not know that this worker failed.
  if (std::uncaught_exceptions() > exceptions_at_start_) {
    abort(static_cast<int>(ExitCode::device));
  }
  world_.reset();
  MPI_Finalize();
}

int MpiSession::rank() const { return world_->rank(); }

int MpiSession::size() const { return world_->size(); }

int MpiSession::local_rank() const { return local_rank_; }

int MpiSession::local_size() const { return local_size_; }

std::string MpiSession::host() const {
  char text[MPI_MAX_PROCESSOR_NAME];
  int length = 0;
  CHECK_MPI(MPI_Get_processor_name(text, &length), "asking for the host's name");
  return std::string(text, static_cast<size_t>(length));
}

std::string MpiSession::library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  CHECK_MPI(MPI_Get_library_version(text, &length), "asking for the version");
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));  // the rest describes its build
}

bool MpiSession::under_launcher() {
  // Open MPI's mpirun, MPICH's and Intel's mpiexec, and PMIx, which srun speaks.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

bool MpiSession::all_failed(double grace_s) {
  // A barrier that may be given up. Nothing else uses the world communicator itself after start.
  MPI_Request request;
  if (MPI_Ibarrier(MPI_COMM_WORLD, &request) != MPI_SUCCESS) return false;
  const auto start = std::chrono::steady_clock::now();
  for (int done = 0;;) {
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
    if (done) return true;
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    if (waited.count() > grace_s) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void MpiSession::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::abort();  // MPI_Abort does not come back
}

}  // namespace lockstep
