#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/mpi_session.h"

namespace lockstep {

// Items of work that any worker can do: each goes to the first worker that asks when its turn has
// come, and what became of it, a string of bytes, comes to rank 0. Who is slow does less
// (self-scheduling; Tang & Yew, 1986). A thread of rank 0 answers the others, also while rank
// 0 itself computes, and one of each other rank gives signs of life.
//
// Every worker calls take, put and stopped until take gives nothing, puts what it has taken, and
// then calls finish. Each throws DeviceError when rank 0, or at rank 0 another worker, has said
// nothing within the deadline; at rank 0 also what on_result threw. Then the queue is of no use any
// more.
class WorkQueue {
 public:
  // Called at rank 0, one call at a time, some of them from a thread of the queue's own.
  using OnResult = std::function<void(size_t item, const std::string& result)>;

  // `items` in the order of handing out, each once; those of rank 0 count. `stop_requested` is
  // asked on every worker, by its own thread: once it says so, no item is handed out any more, on
  // any worker. No session: there are no others. Collective. deadline_s: the longest time without a
  // sign of life or an answer; however long a worker computes, it gives one every half second.
  WorkQueue(MpiSession* session, const std::vector<size_t>& items, OnResult on_result,
            std::function<bool()> stop_requested, double deadline_s = 600);
  ~WorkQueue();

  // The next item, which is this worker's to do; none when all are taken, or after a stop.
  std::optional<size_t> take();
  // What became of an item.
  void put(size_t item, const std::string& result);
  // Whether a stop was requested on any worker. Costs nothing: others are heard of within half a
  // second.
  bool stopped();
  // Waits until nothing more is to come from any worker: of each item a result, or, after a stop,
  // of those that were put nevertheless.
  void finish();

 private:
  class Implementation;
  const std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep
