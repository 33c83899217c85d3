#include "comm/work_queue.h"

#include <fmt/ranges.h>
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/check_mpi.h"

namespace lockstep {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCallTag = 1, kAnswerTag = 2;
constexpr char kOperation[] = "handing out work";
// Between looks for a message: an item takes far longer.
constexpr std::chrono::microseconds kPause{100};
// Between two signs of life of a worker, or less where the deadline is short.
constexpr std::chrono::milliseconds kSignOfLife{500};

enum class Kind : int32_t { take, put, alive, finished };

// A worker calls, rank 0 answers. The bytes of a result follow the call.
struct Call {
  Kind kind;
  int32_t stop;  // 1: the worker asks all to stop
  int64_t item;  // of put
};
struct Answer {
  int64_t item;  // of take; -1: none
  int32_t stopped, over;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

class WorkQueue::Implementation {
 public:
  Implementation(MpiSession* session, const std::vector<size_t>& items, OnResult on_result,
                 std::function<bool()> stop_requested, double deadline_s)
      : rank_(session == nullptr ? 0 : session->rank()),
        size_(session == nullptr ? 1 : session->size()),
        deadline_s_(deadline_s),
        stop_requested_(std::move(stop_requested)),
        items_(items.begin(), items.end()),
        unfinished_(items.size()),
        on_result_(std::move(on_result)) {
    if (size_ == 1) return;
    CHECK_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &communicator_), kOperation);
    CHECK_MPI(MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN), kOperation);
    buffers_->peers.resize(static_cast<size_t>(size_));
    thread_ = rank_ == 0 ? std::thread([this] { serve(); })
                         : std::thread([this] { give_signs_of_life(); });
  }

  ~Implementation() {
    abandoned_ = true;
    end_signs_of_life();
    if (thread_.joinable()) thread_.join();
    if (communicator_ == MPI_COMM_NULL) return;
    if (left_in_order_) {
      MPI_Comm_free(&communicator_);
    } else {
      // Freeing is collective, and the peers may never come to it. MPI may still read and write the
      // buffers, so they stay, too.
      static_cast<void>(buffers_.release());
    }
  }

  std::optional<size_t> take() {
    see_request();
    const int64_t item = rank_ == 0 ? take_here() : call(Kind::take).item;
    return item < 0 ? std::nullopt : std::optional(static_cast<size_t>(item));
  }

  void put(size_t item, const std::string& result) {
    if (rank_ == 0) return put_here(item, result);
    call(Kind::put, static_cast<int64_t>(item), result);
  }

  bool stopped() {
    see_request();
    throw_failure();
    return stop_;
  }

  void finish() {
    if (rank_ != 0 && thread_.joinable()) {  // the calls from here on are signs enough
      end_signs_of_life();
      thread_.join();
    }
    while (!may_leave()) {
      std::this_thread::sleep_for(10 * kPause);
      see_request();
    }
    left_in_order_ = true;
  }

 private:
  void see_request() {
    if (stop_requested_()) stop_ = true;
  }

  bool may_leave() {
    if (rank_ != 0) return call(Kind::finished).over != 0;
    throw_failure();
    return over() && left_ == size_ - 1;
  }

  void fail() {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }

  void throw_failure() {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
  }

  struct Peer {
    Clock::time_point heard = Clock::now();
    Answer answer{};
    MPI_Request sent = MPI_REQUEST_NULL;
    bool left = false;
  };
  // What requests of MPI that are under way point to.
  struct Buffers {
    std::string call;
    std::vector<Peer> peers;  // at rank 0, by rank; the server's
  };

  // --- At rank 0 ---

  int64_t take_here() {
    throw_failure();
    const std::lock_guard lock(mutex_);
    if (stop_ || items_.empty()) return -1;
    const auto item = static_cast<int64_t>(items_.front());
    items_.pop_front();
    return item;
  }

  void put_here(size_t item, const std::string& result) {
    throw_failure();
    const std::lock_guard lock(mutex_);
    on_result_(item, result);
    unfinished_--;
  }

  // Whether nothing more is to come of a worker that has come to its finish.
  bool over() {
    const std::lock_guard lock(mutex_);
    return stop_ || unfinished_ == 0;
  }

  // The server's thread: ends when every worker has left, or with a failure, which the next call
  // of rank 0 throws.
  void serve() {
    try {
      while (left_ < size_ - 1 && !abandoned_) {
        if (!answer_one()) {
          expect_signs_of_life();
          std::this_thread::sleep_for(kPause);
        }
      }
    } catch (...) {
      fail();
    }
  }

  bool answer_one() {
    int there = 0, bytes = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status;
    CHECK_MPI(MPI_Improbe(MPI_ANY_SOURCE, kCallTag, communicator_, &there, &message, &status),
              kOperation);
    if (there == 0) return false;
    CHECK_MPI(MPI_Get_count(&status, MPI_BYTE, &bytes), kOperation);
    CHECK(bytes >= static_cast<int>(sizeof(Call)));
    std::string& text = buffers_->call;
    text.resize(static_cast<size_t>(bytes));
    MPI_Request received = MPI_REQUEST_NULL;
    CHECK_MPI(MPI_Imrecv(text.data(), bytes, MPI_BYTE, &message, &received), kOperation);
    wait(received, status.MPI_SOURCE);
    Call call{};
    std::memcpy(&call, text.data(), sizeof(call));
    Peer& peer = buffers_->peers[static_cast<size_t>(status.MPI_SOURCE)];
    peer.heard = Clock::now();
    if (call.stop != 0) stop_ = true;
    peer.answer.item = call.kind == Kind::take ? take_here() : -1;
    if (call.kind == Kind::put) put_here(static_cast<size_t>(call.item), text.substr(sizeof(call)));
    peer.answer.stopped = stop_ ? 1 : 0;
    peer.answer.over = call.kind == Kind::finished && over() ? 1 : 0;
    // The answer before this one has arrived: the worker called again.
    wait(std::exchange(peer.sent, MPI_REQUEST_NULL), status.MPI_SOURCE);
    CHECK_MPI(MPI_Isend(&peer.answer, sizeof(Answer), MPI_BYTE, status.MPI_SOURCE, kAnswerTag,
                        communicator_, &peer.sent),
              kOperation);
    if (peer.answer.over != 0) {
      wait(std::exchange(peer.sent, MPI_REQUEST_NULL), status.MPI_SOURCE);
      peer.left = true;
      left_++;
    }
    return true;
  }

  void expect_signs_of_life() const {
    std::vector<int> silent;
    double longest = 0;
    for (int rank = 1; rank < size_; rank++) {
      const Peer& peer = buffers_->peers[static_cast<size_t>(rank)];
      if (peer.left || seconds_since(peer.heard) <= deadline_s_) continue;
      silent.push_back(rank);
      longest = std::max(longest, seconds_since(peer.heard));
    }
    if (silent.empty()) return;
    throw_silent(longest,
                 fmt::format("worker{} {}", silent.size() > 1 ? "s" : "", fmt::join(silent, ", ")));
  }

  // --- At the others ---

  // A thread of its own: the worker may compute for longer than the deadline. A failure is for the
  // worker's next call.
  void give_signs_of_life() {
    const auto period =
        std::min<Clock::duration>(kSignOfLife, std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(deadline_s_ / 4)));
    try {
      std::unique_lock lock(signs_mutex_);
      while (!signs_ending_.wait_for(lock, period, [&] { return signs_end_; })) {
        lock.unlock();
        call(Kind::alive);
        lock.lock();
      }
    } catch (...) {  // call has noted it
    }
  }

  void end_signs_of_life() {
    {
      const std::lock_guard lock(signs_mutex_);
      signs_end_ = true;
    }
    signs_ending_.notify_all();
  }

  // One at a time: the worker's own and the signs of life.
  Answer call(Kind kind, int64_t item = -1, const std::string& result = "") {
    const std::lock_guard lock(calling_);
    throw_failure();
    try {
      return ask(kind, item, result);
    } catch (...) {
      fail();
      throw;
    }
  }

  Answer ask(Kind kind, int64_t item, const std::string& result) {
    const Call what{kind, stop_ ? 1 : 0, item};
    std::string& message = buffers_->call;
    message.assign(reinterpret_cast<const char*>(&what), sizeof(what));
    message += result;
    CHECK(message.size() < (size_t{1} << 30), "a result of {} bytes", result.size());
    MPI_Request sent = MPI_REQUEST_NULL;
    CHECK_MPI(MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE, 0, kCallTag,
                        communicator_, &sent),
              kOperation);
    const Clock::time_point start = Clock::now();
    for (int there = 0; there == 0;) {
      CHECK_MPI(MPI_Iprobe(0, kAnswerTag, communicator_, &there, MPI_STATUS_IGNORE), kOperation);
      if (there != 0) break;
      throw_if_abandoned();
      if (seconds_since(start) > deadline_s_) throw_silent(seconds_since(start), "worker 0");
      std::this_thread::sleep_for(kPause);
    }
    Answer answer{};
    CHECK_MPI(MPI_Recv(&answer, sizeof(answer), MPI_BYTE, 0, kAnswerTag, communicator_,
                       MPI_STATUS_IGNORE),
              kOperation);
    wait(sent, 0);
    if (answer.stopped != 0) stop_ = true;
    return answer;
  }

  // --- At all ---

  void wait(MPI_Request request, int peer) const {
    const Clock::time_point start = Clock::now();
    for (int done = 0;;) {
      CHECK_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), kOperation);
      if (done != 0) return;
      throw_if_abandoned();
      if (seconds_since(start) > deadline_s_) {
        throw_silent(seconds_since(start), fmt::format("worker {}", peer));
      }
      std::this_thread::sleep_for(kPause);
    }
  }

  void throw_if_abandoned() const {
    if (abandoned_) throw DeviceError("{}: given up", kOperation);
  }

  [[noreturn]] static void throw_silent(double seconds, const std::string& workers) {
    throw DeviceError(
        "{}: after {:.1f} s nothing had come from {}; look for one that hangs, was stopped or "
        "cannot be reached",
        kOperation, seconds, workers);
  }

  const int rank_, size_;
  const double deadline_s_;
  const std::function<bool()> stop_requested_;
  MPI_Comm communicator_ = MPI_COMM_NULL;
  std::atomic<bool> stop_{false};  // seen here, or heard of
  bool left_in_order_ = false;
  std::unique_ptr<Buffers> buffers_ = std::make_unique<Buffers>();

  // At the others.
  std::mutex calling_, signs_mutex_;
  std::condition_variable signs_ending_;
  bool signs_end_ = false;

  // At rank 0, but for failure_. The mutex guards items_, unfinished_, failure_ and calls of
  // on_result_.
  std::mutex mutex_;
  std::deque<size_t> items_;
  size_t unfinished_;
  const OnResult on_result_;
  std::exception_ptr failure_;
  std::atomic<int> left_{0};
  std::atomic<bool> abandoned_{false};
  std::thread thread_;  // the server's, or that of the signs of life
};

WorkQueue::WorkQueue(MpiSession* session, const std::vector<size_t>& items, OnResult on_result,
                     std::function<bool()> stop_requested, double deadline_s)
    : implementation_(std::make_unique<Implementation>(session, items, std::move(on_result),
                                                       std::move(stop_requested), deadline_s)) {}
WorkQueue::~WorkQueue() = default;
std::optional<size_t> WorkQueue::take() { return implementation_->take(); }
void WorkQueue::put(size_t item, const std::string& result) { implementation_->put(item, result); }
bool WorkQueue::stopped() { return implementation_->stopped(); }
void WorkQueue::finish() { implementation_->finish(); }

}  // namespace lockstep
