#pragma once
#include <mpi.h>
#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

// Communicators of the emulated NCCL: who takes part, and how they find each other over MPI. They
// use point-to-point messages over MPI_COMM_WORLD, with tags of their own.
namespace cuda_emulation {

// Held while MPI is called from here.
std::mutex& mpi_mutex();

// What stands in an ncclUniqueId. The process that made it must take part itself: the others find
// each other through it.
struct Meeting {
  uint64_t mark;
  uint64_t nonce;
  int32_t world_rank;  // of who made it
  int32_t number;      // of those that it made
};

enum class Channel { meeting, collective, point_to_point };

// Says why on stderr, keeps it for ncclGetLastError, and returns the code.
ncclResult_t nccl_error(ncclResult_t code, const std::string& why);
const char* last_nccl_error();

}  // namespace cuda_emulation

struct ncclComm {
  int rank = 0;
  std::vector<int> world_ranks;  // in MPI_COMM_WORLD, by rank; negative: not known yet
  cuda_emulation::Meeting meeting{};
  bool blocking = true;
  std::string algorithm;  // what NCCL_ALGO was when the communicator became ready; empty: not set
  std::atomic<bool> ready{false}, aborted{false}, destroyed{false};
  std::atomic<ncclResult_t> error{ncclSuccess};
  std::atomic<int> polls_left{0};  // in which a call that does not block seems in progress
  // Operations run one after the other, in the order of the calls.
  std::atomic<uint64_t> num_issued{0}, num_finished{0};

  // Operations that graphs hold, which NCCL counts, too: until none is left, neither ncclCommAbort
  // nor ncclCommDestroy returns.
  std::atomic<int> num_held{0};

  // Memory that was registered; a handle is the address of one of these.
  struct Registered {
    const char* begin;
    size_t size;
  };
  const Registered* register_memory(const void* begin, size_t size);  // null: no memory of the GPU
  bool deregister(const void* handle);  // false where it is no handle of this communicator
  void deregister_all();
  bool is_registered(const void* begin, size_t size);

  int size() const { return static_cast<int>(world_ranks.size()); }
  int tag(cuda_emulation::Channel channel) const;

  // Goes on with finding the others, as far as it goes without waiting.
  void meet();

 private:
  struct Hello {
    uint64_t nonce;
    int32_t rank, size, world_rank;
  };
  void meet_all();    // as the one who made the meeting
  void meet_maker();  // as one of the others
  bool sent_all();
  void become_ready();

  Hello hello_{};
  bool asked_ = false, answered_ = false;
  std::deque<MPI_Request> requests_;
  std::mutex registered_mutex_;
  std::list<Registered> registered_;
};

namespace cuda_emulation {

// Makes one that has yet to meet(). It stays until the process ends, as graphs may name it.
ncclComm* make_communicator(int size, int rank, const Meeting& meeting, bool blocking);
Meeting new_meeting();

}  // namespace cuda_emulation
