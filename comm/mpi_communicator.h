#pragma once
#include <mpi.h>

#include <atomic>

#include "comm/communicator.h"

namespace lockstep {

// Communicator over MPI, for host memory. Each operation first waits until all workers have come to
// it, asleep rather than spinning, so that a worker that waits leaves its core to those that
// compute. No call blocks within MPI, so that a deadline can end every wait.
class MpiCommunicator : public Communicator {
 public:
  struct Options {
    double deadline_s = 600;          // the longest wait for the peers
    int64_t largest_count = 1 << 28;  // elements of one MPI call; MPI's own limit is 2^31 - 1
  };
  // Duplicates `parent`; collective over it.
  MpiCommunicator(MPI_Comm parent, const Options& options);
  explicit MpiCommunicator(MPI_Comm parent) : MpiCommunicator(parent, Options()) {}
  ~MpiCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce(const Tensor& data, ReduceOp op, Stream& stream) override;
  void all_reduce(double* values, int64_t count, ReduceOp op) override;
  void all_gather(const Tensor& data, Stream& stream) override;
  void reduce_scatter(const Tensor& out, const Tensor& data, Stream& stream) override;
  void all_to_all(const Tensor& out, const Tensor& data, Stream& stream) override;
  void broadcast(const Tensor& data, int root, Stream& stream) override;
  void broadcast(std::string& text, int root) override;
  std::vector<std::string> gather(const std::string& text) override;
  void barrier() override;
  std::unique_ptr<Communicator> duplicate() override;
  void set_purpose(const std::string& purpose) override { purpose_ = purpose; }
  void set_deadline(double seconds) override { options_.deadline_s = seconds; }
  void cancel() override { cancelled_ = true; }

 private:
  // While a peer may be far behind, a waiting thread sleeps; while data moves, it drives MPI, and
  // yields its core to who computes.
  enum class Pace { asleep, awake };
  void wait_for_peers(const char* operation);
  void wait(MPI_Request request, const char* operation, Pace pace);
  [[noreturn]] void throw_cancelled(const char* operation) const;
  std::string described(const char* operation) const;

  // Of a communicator and its duplicates together: a worker may wait in any of them.
  struct GivingUp;
  MpiCommunicator(MPI_Comm parent, const Options& options, std::shared_ptr<GivingUp> giving_up);

  void all_reduce(void* data, int64_t count, MPI_Datatype type, ReduceOp op);
  void broadcast_bytes(void* data, int64_t count, int root);

  Options options_;
  MPI_Comm communicator_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::string purpose_;
  std::shared_ptr<GivingUp> giving_up_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace lockstep
