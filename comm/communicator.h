#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace lockstep {

enum class ReduceOp { sum, max, min };

// What an operation has this worker send, at least, if its `size_bytes` go around a ring or in
// blocks from worker to worker. all_reduce: a reduce-scatter and an all-gather.
inline Work collective_work(std::string_view operation, int64_t size_bytes, int workers) {
  const double others = static_cast<double>(workers - 1) / workers;
  const double times = operation == "all_reduce" ? 2 * others : others;
  return {operation, times * static_cast<double>(size_bytes), 0, Unit::link};
}
inline Work broadcast_work(int64_t size_bytes, int workers) {
  return {"broadcast", workers == 1 ? 0 : static_cast<double>(size_bytes), 0, Unit::link};
}

// Collective operations among the workers. Every worker must call the same operations in the same
// order with the same counts. Each is enqueued on `stream`; on the CPU it is complete on return.
// Throws DeviceError, naming the operation, when a peer or the network fails, or when the workers
// have not all called it within the deadline: then naming those that had not. Counts are elements.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // In place; fp32 or int32, and float64 through the second form. Sums of bf16 and fp16 are
  // refused: they would be rounded at every hop; widen first. All workers get the same bits.
  virtual void all_reduce(const Tensor& data, ReduceOp op, Stream& stream) = 0;
  virtual void all_reduce(double* values, int64_t count, ReduceOp op) = 0;
  // data (size() * n): each worker has filled its n elements, all get all.
  virtual void all_gather(const Tensor& data, Stream& stream) = 0;
  // data (size() * n) in; worker r's n elements of `out` are the sum over workers of its part. fp32
  // or int32.
  virtual void reduce_scatter(const Tensor& out, const Tensor& data, Stream& stream) = 0;
  // Block r of `data` goes to worker r; block s of `out` came from worker s. Equal blocks.
  virtual void all_to_all(const Tensor& out, const Tensor& data, Stream& stream) = 0;
  virtual void broadcast(const Tensor& data, int root, Stream& stream) = 0;
  virtual void broadcast(std::string& text, int root) = 0;
  virtual std::vector<std::string> gather(const std::string& text) = 0;  // by rank, at rank 0
  virtual void barrier() = 0;
  // Lets operations on parts of `data` go without copies in between, where the transport can, as
  // long as the result lives; results are the same. It must end before the memory and the
  // communicator do, and after what was enqueued. To be had of every buffer of an operation or of
  // none. Collective.
  using Registration = std::shared_ptr<void>;
  virtual Registration register_memory(const Tensor&) { return nullptr; }
  // An independent communicator over the same workers, for use by another thread.
  virtual std::unique_ptr<Communicator> duplicate() = 0;
  // What the operations from here on are for, as errors shall name it: "all-to-all {purpose}".
  virtual void set_purpose(const std::string& purpose) = 0;
  // How long operations from here on wait for the peers, also those of later duplicates.
  virtual void set_deadline(double seconds) = 0;
  // A Graph that holds operations of this communicator was launched in `stream`; `what` names it in
  // errors. From now on they are waited for as long as any operation.
  virtual void launched(const std::string& /*what*/, Stream& /*stream*/) {}
  // Throws DeviceError when an operation that was enqueued so far has failed. To be called once its
  // stream was synchronised, before what it wrote is believed.
  virtual void check() {}
  // From any thread: an operation of this communicator that waits for its peers, and any later one,
  // throws DeviceError. For leaving when the peers will not come.
  virtual void cancel() = 0;
};

}  // namespace lockstep
