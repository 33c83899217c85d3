#include "cuda_emulation/nccl_communicator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "cuda_emulation/memory.h"
#include "cuda_emulation/scheduler.h"

namespace cuda_emulation {
namespace {

constexpr uint64_t kMeetingMark = 0x6c6f636b73746570;

std::mutex error_mutex;
std::string& last_error() {
  static auto* text = new std::string;
  return *text;
}

// A process on its own may use communicators without a thought of MPI.
void ensure_mpi() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) return;
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
  std::atexit([] { MPI_Finalize(); });
}

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

}  // namespace

std::mutex& mpi_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

ncclResult_t nccl_error(ncclResult_t code, const std::string& why) {
  std::fprintf(stderr, "emulated device: NCCL: %s\n", why.c_str());
  const std::lock_guard lock(error_mutex);
  last_error() = why;
  return code;
}

const char* last_nccl_error() {
  static thread_local std::string copy;
  const std::lock_guard lock(error_mutex);
  copy = last_error();
  return copy.c_str();
}

Meeting new_meeting() {
  static int32_t made = 0;
  const std::lock_guard lock(mpi_mutex());
  ensure_mpi();
  std::random_device entropy;
  const uint64_t nonce = uint64_t{entropy()} << 32 | entropy();
  return {kMeetingMark, nonce, world_rank(), made++};
}

ncclComm* make_communicator(int size, int rank, const Meeting& meeting, bool blocking) {
  static auto* all = new std::vector<std::unique_ptr<ncclComm>>;
  if (meeting.mark != kMeetingMark || rank < 0 || rank >= size) return nullptr;
  const std::lock_guard lock(mpi_mutex());
  ensure_mpi();
  auto made = std::make_unique<ncclComm>();
  made->rank = rank;
  made->world_ranks.assign(static_cast<size_t>(size), -1);
  made->world_ranks[static_cast<size_t>(rank)] = world_rank();
  made->meeting = meeting;
  made->blocking = blocking;
  return all->emplace_back(std::move(made)).get();
}

}  // namespace cuda_emulation

using cuda_emulation::Channel;

int ncclComm::tag(Channel channel) const {
  constexpr int kFirst = 1 << 20, kMeetings = 1 << 18, kEach = 4096;
  const int number = (meeting.world_rank * kEach + meeting.number % kEach) % kMeetings;
  return kFirst + 3 * number + static_cast<int>(channel);
}

void ncclComm::meet() {
  const std::lock_guard lock(cuda_emulation::mpi_mutex());
  if (ready || aborted || error != ncclSuccess) return;
  const int own = world_ranks[static_cast<size_t>(rank)];
  if (own == meeting.world_rank) {
    meet_all();
  } else {
    meet_maker();
  }
}

void ncclComm::meet_all() {
  while (!answered_) {
    const auto missing = std::ranges::count(world_ranks, -1);
    if (missing == 0) break;
    int arrived = 0;
    MPI_Message message;
    MPI_Status status;
    MPI_Improbe(MPI_ANY_SOURCE, tag(Channel::meeting), MPI_COMM_WORLD, &arrived, &message, &status);
    if (arrived == 0) return;
    Hello hello{};
    MPI_Mrecv(&hello, sizeof(hello), MPI_BYTE, &message, MPI_STATUS_IGNORE);
    if (hello.nonce != meeting.nonce) continue;  // of a meeting that was given up
    if (hello.size != size() || hello.rank < 0 || hello.rank >= size() ||
        world_ranks[static_cast<size_t>(hello.rank)] >= 0) {
      error = cuda_emulation::nccl_error(ncclInvalidUsage, "ranks disagree about a communicator");
      return;
    }
    world_ranks[static_cast<size_t>(hello.rank)] = hello.world_rank;
  }
  if (!answered_) {
    answered_ = true;
    for (const int to : world_ranks) {
      if (to == meeting.world_rank) continue;
      MPI_Isend(world_ranks.data(), size(), MPI_INT, to, tag(Channel::meeting), MPI_COMM_WORLD,
                &requests_.emplace_back());
    }
  }
  if (sent_all()) become_ready();
}

void ncclComm::meet_maker() {
  if (!asked_) {
    asked_ = true;
    hello_ = {meeting.nonce, rank, size(), world_ranks[static_cast<size_t>(rank)]};
    MPI_Isend(&hello_, sizeof(hello_), MPI_BYTE, meeting.world_rank, tag(Channel::meeting),
              MPI_COMM_WORLD, &requests_.emplace_back());
  }
  int arrived = 0;
  MPI_Message message;
  MPI_Status status;
  MPI_Improbe(meeting.world_rank, tag(Channel::meeting), MPI_COMM_WORLD, &arrived, &message,
              &status);
  if (arrived == 0 || !sent_all()) return;
  MPI_Mrecv(world_ranks.data(), size(), MPI_INT, &message, MPI_STATUS_IGNORE);
  become_ready();
}

// The real one reads the variable in a thread that sets the communicator up.
void ncclComm::become_ready() {
  const char* chosen = std::getenv("NCCL_ALGO");
  algorithm = chosen == nullptr ? "" : chosen;
  ready = true;
}

bool ncclComm::sent_all() {
  for (MPI_Request& request : requests_) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done == 0) return false;
  }
  return true;
}

const ncclComm::Registered* ncclComm::register_memory(const void* begin, size_t size) {
  if (!cuda_emulation::hold(begin, size)) return nullptr;
  cuda_emulation::count_handle("registrations with NCCL", 1);
  const std::lock_guard lock(registered_mutex_);
  return &registered_.emplace_back(static_cast<const char*>(begin), size);
}

bool ncclComm::deregister(const void* handle) {
  const std::lock_guard lock(registered_mutex_);
  const auto known = std::ranges::find(registered_, handle, [](const Registered& r) { return &r; });
  if (known == registered_.end()) return false;
  cuda_emulation::let_go(known->begin);
  cuda_emulation::count_handle("registrations with NCCL", -1);
  registered_.erase(known);
  return true;
}

void ncclComm::deregister_all() {
  while (!registered_.empty()) deregister(&registered_.front());
}

bool ncclComm::is_registered(const void* begin, size_t size) {
  const auto* first = static_cast<const char*>(begin);
  const std::lock_guard lock(registered_mutex_);
  return std::ranges::any_of(registered_, [&](const Registered& r) {
    return r.begin <= first && first + size <= r.begin + r.size;
  });
}
