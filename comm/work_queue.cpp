#include "comm/work_queue.h"

#include <fmt/ranges.h>
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
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
// Between two signs of life of a worker that has nothing to say.
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
    if (rank_ != 0) return;
    peers_.resize(static_cast<size_t>(size_));
    server_ = std::thread([this] { serve(); });
  }

  ~Implementation() {
    abandoned_ = true;
    if (server_.joinable()) server_.join();
    // Freeing is collective: after a failure the peers may never come to it.
    if (communicator_ != MPI_COMM_NULL && left_in_order_) MPI_Comm_free(&communicator_);
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
    if (rank_ == 0) {
      throw_failure();
    } else if (Clock::now() - last_call_ > kSignOfLife) {
      call(Kind::alive);
    }
    return stop_;
  }

  void finish() {
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

  // --- At rank 0 ---

  struct Peer {
    Clock::time_point heard = Clock::now();
    Answer answer{};
    MPI_Request sent = MPI_REQUEST_NULL;
    bool left = false;
  };

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

  void throw_failure() {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
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
      const std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
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
    std::string text(static_cast<size_t>(bytes), '\0');
    MPI_Request received = MPI_REQUEST_NULL;
    CHECK_MPI(MPI_Imrecv(text.data(), bytes, MPI_BYTE, &message, &received), kOperation);
    wait(received, status.MPI_SOURCE);
    Call call{};
    std::memcpy(&call, text.data(), sizeof(call));
    Peer& peer = peers_[static_cast<size_t>(status.MPI_SOURCE)];
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
      const Peer& peer = peers_[static_cast<size_t>(rank)];
      if (peer.left || seconds_since(peer.heard) <= deadline_s_) continue;
      silent.push_back(rank);
      longest = std::max(longest, seconds_since(peer.heard));
    }
    if (silent.empty()) return;
    throw_silent(longest,
                 fmt::format("worker{} {}", silent.size() > 1 ? "s" : "", fmt::join(silent, ", ")));
  }

  // --- At the others ---

  Answer call(Kind kind, int64_t item = -1, const std::string& result = "") {
    const Call what{kind, stop_ ? 1 : 0, item};
    const std::string message =
        std::string(reinterpret_cast<const char*>(&what), sizeof(what)) + result;
    CHECK(message.size() < (size_t{1} << 30), "a result of {} bytes", result.size());
    MPI_Request sent = MPI_REQUEST_NULL;
    CHECK_MPI(MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE, 0, kCallTag,
                        communicator_, &sent),
              kOperation);
    const Clock::time_point start = Clock::now();
    for (int there = 0; there == 0;) {
      CHECK_MPI(MPI_Iprobe(0, kAnswerTag, communicator_, &there, MPI_STATUS_IGNORE), kOperation);
      if (there != 0) break;
      if (seconds_since(start) > deadline_s_) throw_silent(seconds_since(start), "worker 0");
      std::this_thread::sleep_for(kPause);
    }
    Answer answer{};
    CHECK_MPI(MPI_Recv(&answer, sizeof(answer), MPI_BYTE, 0, kAnswerTag, communicator_,
                       MPI_STATUS_IGNORE),
              kOperation);
    wait(sent, 0);
    last_call_ = Clock::now();
    if (answer.stopped != 0) stop_ = true;
    return answer;
  }

  // --- At all ---

  void wait(MPI_Request request, int peer) const {
    const Clock::time_point start = Clock::now();
    for (int done = 0;;) {
      CHECK_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), kOperation);
      if (done != 0 || abandoned_) return;
      if (seconds_since(start) > deadline_s_) {
        throw_silent(seconds_since(start), fmt::format("worker {}", peer));
      }
      std::this_thread::sleep_for(kPause);
    }
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

  // At the others.
  Clock::time_point last_call_ = Clock::now();

  // At rank 0. The mutex guards items_, unfinished_, failure_ and calls of on_result_.
  std::mutex mutex_;
  std::deque<size_t> items_;
  size_t unfinished_;
  const OnResult on_result_;
  std::exception_ptr failure_;
  std::vector<Peer> peers_;  // by rank; the server's
  std::atomic<int> left_{0};
  std::atomic<bool> abandoned_{false};
  std::thread server_;
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
