#include "comm/mpi_communicator.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "comm/check_mpi.h"
#include "core/profile.h"

namespace lockstep {

void check_mpi(int code, std::string_view operation) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw DeviceError("communication between the workers failed in {}: {}", operation, text);
}

namespace {

MPI_Op mpi_op(ReduceOp op) {
  return op == ReduceOp::sum ? MPI_SUM : op == ReduceOp::max ? MPI_MAX : MPI_MIN;
}

MPI_Datatype reducible_type(const Tensor& data) {
  CHECK(data.dtype() == DType::fp32 || data.dtype() == DType::int32,
        "{} is not summed between workers: widen it to fp32 first", name(data.dtype()));
  return data.dtype() == DType::fp32 ? MPI_FLOAT : MPI_INT32_T;
}

void check_host(const Tensor& data) {
  CHECK(data.device() == Device::cpu, "MPI moves host memory");
}

constexpr int kGaveUpTag = 1;
constexpr std::chrono::milliseconds kGaveUpGrace{1000};

std::string workers_text(const std::vector<int>& ranks) {
  constexpr size_t kShown = 16;
  if (ranks.empty()) return "some worker";
  const std::vector<int> shown(ranks.begin(),
                               ranks.begin() + static_cast<int>(std::min(kShown, ranks.size())));
  return fmt::format(
      "worker{} {}{}", ranks.size() == 1 ? "" : "s", fmt::join(shown, ", "),
      ranks.size() > kShown ? fmt::format(" and {} more", ranks.size() - kShown) : "");
}

// `size_bytes` bytes as one element of MPI's, whatever their number: MPI counts in int.
class Block {
 public:
  Block(int64_t size_bytes, int64_t largest_count) {
    const int64_t whole = size_bytes / largest_count;
    const int rest = static_cast<int>(size_bytes % largest_count);
    MPI_Datatype piece, pieces;
    check(MPI_Type_contiguous(static_cast<int>(largest_count), MPI_BYTE, &piece));
    check(MPI_Type_contiguous(static_cast<int>(whole), piece, &pieces));
    const int lengths[] = {1, rest};
    const MPI_Aint places[] = {0, static_cast<MPI_Aint>(whole * largest_count)};
    const MPI_Datatype types[] = {pieces, MPI_BYTE};
    check(MPI_Type_create_struct(2, lengths, places, types, &type_));
    check(MPI_Type_commit(&type_));
    MPI_Type_free(&piece);
    MPI_Type_free(&pieces);
  }
  ~Block() { MPI_Type_free(&type_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  MPI_Datatype type() const { return type_; }

 private:
  static void check(int code) { CHECK_MPI(code, "describing a block"); }
  MPI_Datatype type_;
};

}  // namespace

// Whoever gives up tells all, and who waits, in whatever operation, gives up with it: so those that
// wait hear of each other, and the others are the ones that are missing.
struct MpiCommunicator::GivingUp {
  explicit GivingUp(MPI_Comm parent) {
    CHECK_MPI(MPI_Comm_dup(parent, &communicator), "setting up");
    CHECK_MPI(MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN), "setting up");
    MPI_Comm_rank(communicator, &rank);
    MPI_Comm_size(communicator, &size);
    came.resize(static_cast<size_t>(size));
  }

  bool a_peer_did() {
    const std::lock_guard lock(mutex);
    int there = told ? 1 : 0;
    if (!told) {
      CHECK_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kGaveUpTag, communicator, &there, MPI_STATUS_IGNORE),
                "looking for messages");
    }
    return there != 0;
  }

  // The ranks that do not say within a moment that they wait, too.
  std::vector<int> absent_peers() {
    const std::lock_guard lock(mutex);
    if (!told) tell_and_hear();
    std::vector<int> absent;
    for (int peer = 0; peer < size; peer++) {
      if (!came[static_cast<size_t>(peer)]) absent.push_back(peer);
    }
    return absent;
  }

  MPI_Comm communicator = MPI_COMM_NULL;

 private:
  void tell_and_hear() {
    told = true;
    came[static_cast<size_t>(rank)] = true;
    for (int peer = 0; peer < size; peer++) {
      if (peer == rank) continue;
      MPI_Request request;
      CHECK_MPI(MPI_Isend(nullptr, 0, MPI_BYTE, peer, kGaveUpTag, communicator, &request),
                "telling the peers");
      MPI_Request_free(&request);  // to a worker that is gone it never arrives
    }
    using std::chrono::steady_clock;
    for (const auto start = steady_clock::now(); steady_clock::now() - start < kGaveUpGrace;) {
      int there = 0;
      MPI_Status status;
      CHECK_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kGaveUpTag, communicator, &there, &status),
                "hearing of the peers");
      if (there == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        continue;
      }
      CHECK_MPI(MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, kGaveUpTag, communicator,
                         MPI_STATUS_IGNORE),
                "hearing of the peers");
      came[static_cast<size_t>(status.MPI_SOURCE)] = true;
    }
  }

  std::mutex mutex;
  int rank = 0, size = 1;
  bool told = false;
  std::vector<bool> came;  // by rank
};

MpiCommunicator::MpiCommunicator(MPI_Comm parent, const Options& options)
    : MpiCommunicator(parent, options, std::make_shared<GivingUp>(parent)) {}

MpiCommunicator::MpiCommunicator(MPI_Comm parent, const Options& options,
                                 std::shared_ptr<GivingUp> giving_up)
    : options_(options), giving_up_(std::move(giving_up)) {
  CHECK_MPI(MPI_Comm_dup(parent, &communicator_), "duplicating a communicator");
  CHECK_MPI(MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN), "setting up");
  CHECK_MPI(MPI_Comm_rank(communicator_, &rank_), "setting up");
  CHECK_MPI(MPI_Comm_size(communicator_, &size_), "setting up");
}

MpiCommunicator::~MpiCommunicator() {
  // Freeing is collective: after a failure the peers may never come to it.
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0 || cancelled_ || std::uncaught_exceptions() > 0) return;
  MPI_Comm_free(&communicator_);
  if (giving_up_.use_count() == 1) MPI_Comm_free(&giving_up_->communicator);
}

void MpiCommunicator::wait_for_peers(const char* operation) {
  if (cancelled_) throw_cancelled(operation);
  if (size_ == 1) return;
  const ProfileScope scope(Span::Kind::wait, "wait_for_peers");
  MPI_Request request;
  CHECK_MPI(MPI_Ibarrier(communicator_, &request), operation);
  wait(request, operation, Pace::asleep);
}

std::string MpiCommunicator::described(const char* operation) const {
  return purpose_.empty() ? operation : fmt::format("{} {}", operation, purpose_);
}

void MpiCommunicator::throw_cancelled(const char* operation) const {
  throw DeviceError("{} was cancelled: another part of this worker failed", described(operation));
}

void MpiCommunicator::wait(MPI_Request request, const char* operation, Pace pace) {
  using namespace std::chrono;
  const auto start = steady_clock::now();
  while (true) {
    int done = 0;
    CHECK_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), operation);
    if (done != 0) return;
    if (cancelled_) throw_cancelled(operation);
    const duration<double> waited = steady_clock::now() - start;
    if (waited.count() > options_.deadline_s ||
        (waited > milliseconds(100) && giving_up_->a_peer_did())) {
      cancelled_ = true;
      throw DeviceError(
          "{}: after {:.1f} s {} had not come to it; look for one that hangs, was stopped or "
          "cannot "
          "be reached",
          described(operation), waited.count(), workers_text(giving_up_->absent_peers()));
    }
    // A peer is mostly microseconds away; after that, waking up late costs less than spinning.
    if (waited < microseconds(20)) continue;
    if (pace == Pace::awake) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(microseconds(waited < milliseconds(2) ? 20 : 200));
    }
  }
}

void MpiCommunicator::all_reduce(const Tensor& data, ReduceOp op, Stream&) {
  check_host(data);
  all_reduce(data.data(), data.size(), reducible_type(data), op);
}

void MpiCommunicator::all_reduce(double* values, int64_t count, ReduceOp op) {
  all_reduce(values, count, MPI_DOUBLE, op);
}

void MpiCommunicator::all_reduce(void* data, int64_t count, MPI_Datatype type, ReduceOp op) {
  int element_bytes = 0;
  CHECK_MPI(MPI_Type_size(type, &element_bytes), "all-reduce");
  const ProfileScope scope(collective_work("all_reduce", count * element_bytes, size_));
  wait_for_peers("all-reduce");
  if (size_ == 1) return;
  for (int64_t begin = 0; begin < count; begin += options_.largest_count) {
    const int64_t part = std::min(options_.largest_count, count - begin);
    MPI_Request request;
    CHECK_MPI(MPI_Iallreduce(MPI_IN_PLACE, static_cast<char*>(data) + begin * element_bytes,
                             static_cast<int>(part), type, mpi_op(op), communicator_, &request),
              "all-reduce");
    wait(request, "all-reduce", Pace::awake);
  }
}

void MpiCommunicator::all_gather(const Tensor& data, Stream&) {
  check_host(data);
  CHECK(data.size() % size_ == 0, "{} elements among {} workers", data.size(), size_);
  const ProfileScope scope(collective_work("all_gather", data.size_bytes(), size_));
  wait_for_peers("all-gather");
  if (size_ == 1) return;
  const Block block(data.size_bytes() / size_, options_.largest_count);
  MPI_Request request;
  CHECK_MPI(MPI_Iallgather(MPI_IN_PLACE, 1, block.type(), data.data(), 1, block.type(),
                           communicator_, &request),
            "all-gather");
  wait(request, "all-gather", Pace::awake);
}

void MpiCommunicator::reduce_scatter(const Tensor& out, const Tensor& data, Stream&) {
  check_host(data);
  CHECK(data.size() == out.size() * size_ && data.dtype() == out.dtype(),
        "{} elements to {} workers with {} each", data.size(), size_, out.size());
  const ProfileScope scope(collective_work("reduce_scatter", data.size_bytes(), size_));
  wait_for_peers("reduce-scatter");
  const MPI_Datatype type = reducible_type(data);
  const int64_t n = out.size(), element_bytes = size_bytes(data.dtype());
  MPI_Request request;
  if (data.size() <= options_.largest_count) {
    CHECK_MPI(MPI_Ireduce_scatter_block(data.data(), out.data(), static_cast<int>(n), type, MPI_SUM,
                                        communicator_, &request),
              "reduce-scatter");
    wait(request, "reduce-scatter", Pace::awake);
    return;
  }
  for (int root = 0; root < size_; root++) {
    for (int64_t begin = 0; begin < n; begin += options_.largest_count) {
      const int64_t part = std::min(options_.largest_count, n - begin);
      CHECK_MPI(
          MPI_Ireduce(static_cast<const char*>(data.data()) + (root * n + begin) * element_bytes,
                      static_cast<char*>(out.data()) + begin * element_bytes,
                      static_cast<int>(part), type, MPI_SUM, root, communicator_, &request),
          "reduce-scatter");
      wait(request, "reduce-scatter", Pace::awake);
    }
  }
}

void MpiCommunicator::all_to_all(const Tensor& out, const Tensor& data, Stream&) {
  check_host(data);
  CHECK(data.size_bytes() == out.size_bytes() && data.size() % size_ == 0,
        "{} elements among {} workers", data.size(), size_);
  const ProfileScope scope(collective_work("all_to_all", data.size_bytes(), size_));
  wait_for_peers("all-to-all");
  const Block block(data.size_bytes() / size_, options_.largest_count);
  MPI_Request request;
  CHECK_MPI(MPI_Ialltoall(data.data(), 1, block.type(), out.data(), 1, block.type(), communicator_,
                          &request),
            "all-to-all");
  wait(request, "all-to-all", Pace::awake);
}

void MpiCommunicator::broadcast(const Tensor& data, int root, Stream&) {
  check_host(data);
  const ProfileScope scope(broadcast_work(data.size_bytes(), size_));
  wait_for_peers("broadcast");
  broadcast_bytes(data.data(), data.size_bytes(), root);
}

void MpiCommunicator::broadcast(std::string& text, int root) {
  wait_for_peers("broadcast");
  int64_t length = static_cast<int64_t>(text.size());
  broadcast_bytes(&length, sizeof length, root);
  text.resize(static_cast<size_t>(length));
  broadcast_bytes(text.data(), length, root);
}

void MpiCommunicator::broadcast_bytes(void* data, int64_t count, int root) {
  for (int64_t begin = 0; begin < count; begin += options_.largest_count) {
    const int64_t part = std::min(options_.largest_count, count - begin);
    MPI_Request request;
    CHECK_MPI(MPI_Ibcast(static_cast<char*>(data) + begin, static_cast<int>(part), MPI_BYTE, root,
                         communicator_, &request),
              "broadcast");
    wait(request, "broadcast", Pace::awake);
  }
}

std::vector<std::string> MpiCommunicator::gather(const std::string& text) {
  wait_for_peers("gather");
  CHECK(text.size() < (size_t{1} << 30), "a text of {} bytes is too long to gather", text.size());
  const int length = static_cast<int>(text.size());
  std::vector<int> lengths(static_cast<size_t>(size_)), begins(lengths.size());
  MPI_Request request;
  CHECK_MPI(
      MPI_Igather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, 0, communicator_, &request),
      "gather");
  wait(request, "gather", Pace::awake);
  std::exclusive_scan(lengths.begin(), lengths.end(), begins.begin(), 0);
  std::string all(rank_ == 0 ? static_cast<size_t>(begins.back() + lengths.back()) : 0, '\0');
  CHECK_MPI(MPI_Igatherv(text.data(), length, MPI_BYTE, all.data(), lengths.data(), begins.data(),
                         MPI_BYTE, 0, communicator_, &request),
            "gather");
  wait(request, "gather", Pace::awake);
  std::vector<std::string> texts;
  for (size_t r = 0; rank_ == 0 && r < lengths.size(); r++) {
    texts.push_back(all.substr(static_cast<size_t>(begins[r]), static_cast<size_t>(lengths[r])));
  }
  return texts;
}

void MpiCommunicator::barrier() { wait_for_peers("barrier"); }

std::unique_ptr<Communicator> MpiCommunicator::duplicate() {
  wait_for_peers("duplicating a communicator");
  return std::unique_ptr<Communicator>(new MpiCommunicator(communicator_, options_, giving_up_));
}

}  // namespace lockstep
