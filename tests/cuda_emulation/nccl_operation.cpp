#include "cuda_emulation/nccl_operation.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <set>
#include <thread>
#include <tuple>

#include "cuda_emulation/memory.h"

namespace cuda_emulation {
namespace {

using Clock = std::chrono::steady_clock;

// Reduces by ranks in their order, in type A, with one rounding to T at the end: the same bits on
// every rank.
template <class T, class A>
void reduce(const std::vector<const char*>& in, char* out, size_t count, int32_t op) {
  for (size_t i = 0; i < count; i++) {
    A sum{};
    for (size_t rank = 0; rank < in.size(); rank++) {
      T element;
      std::memcpy(&element, in[rank] + i * sizeof(T), sizeof(T));
      const A value = static_cast<A>(element);
      if (rank == 0) {
        sum = value;
      } else if (op == ncclProd) {
        sum = static_cast<A>(sum * value);
      } else if (op == ncclMax) {
        sum = std::max(sum, value);
      } else if (op == ncclMin) {
        sum = std::min(sum, value);
      } else {
        sum = static_cast<A>(sum + value);
      }
    }
    if (op == ncclAvg) sum = static_cast<A>(sum / static_cast<A>(in.size()));
    const T result = static_cast<T>(sum);
    std::memcpy(out + i * sizeof(T), &result, sizeof(T));
  }
}

void reduce(const std::vector<const char*>& in, char* out, size_t count, ncclDataType_t type,
            int32_t op) {
  switch (type) {
    case ncclFloat32:
      return reduce<float, float>(in, out, count, op);
    case ncclFloat64:
      return reduce<double, double>(in, out, count, op);
    case ncclBfloat16:
      return reduce<__nv_bfloat16, float>(in, out, count, op);
    case ncclFloat16:
      return reduce<__half, float>(in, out, count, op);
    case ncclInt8:
      return reduce<int8_t, int64_t>(in, out, count, op);
    case ncclUint8:
      return reduce<uint8_t, int64_t>(in, out, count, op);
    case ncclInt32:
      return reduce<int32_t, int64_t>(in, out, count, op);
    case ncclUint32:
      return reduce<uint32_t, uint64_t>(in, out, count, op);
    case ncclInt64:
      return reduce<int64_t, int64_t>(in, out, count, op);
    case ncclUint64:
      return reduce<uint64_t, uint64_t>(in, out, count, op);
    default:
      return;  // refused when it was called
  }
}

// Stands before the elements of each message.
struct Header {
  Collective kind;
  int32_t type, reduction, peer;
  uint64_t count;
  uint64_t registered;  // whether the rank's own buffers are
  bool operator==(const Header&) const = default;
};

std::string text_of(const Header& header) {
  return "operation " + std::to_string(static_cast<int>(header.kind)) + " of " +
         std::to_string(header.count) + " of type " + std::to_string(header.type) +
         (header.registered == 1 ? ", registered" : "");
}

// NCCL demands that an operation's buffers are registered on all ranks or on none, so this is part
// of what ranks must agree on.
Header header_of(const NcclOperation& op) {
  const size_t bytes = op.count * element_bytes(op.type);
  const auto registered = [&](const void* buffer) {
    return buffer == nullptr || op.communicator->is_registered(buffer, bytes);
  };
  const uint64_t both = registered(op.send) && registered(op.receive) ? 1 : 0;
  if (op.is_point_to_point()) return {Collective::send, op.type, 0, 0, op.count, both};
  return {op.kind, op.type, op.reduction, op.peer, op.count, both};
}

struct Incoming {
  int rank = 0;
  std::vector<char> message;  // empty until it is there
  bool arrived = false;
};

// An operation in flight. With mpi_mutex() held, all of it.
class Exchange {
 public:
  explicit Exchange(const NcclOperation& op) : op_(op) {}

  void start();
  // `blocked` holds where an earlier operation still waits for a message, which must come first.
  bool progress(std::set<std::tuple<ncclComm*, Channel, int>>& blocked);
  void finish();
  const NcclOperation& operation() const { return op_; }

 private:
  size_t bytes() const { return op_.count * element_bytes(op_.type); }
  size_t send_bytes() const;
  size_t receive_bytes() const;
  Channel channel() const {
    return op_.is_point_to_point() ? Channel::point_to_point : Channel::collective;
  }
  bool sends_to(int rank) const;
  bool receives_from(int rank) const;
  void send_to(int rank);
  void fail(ncclResult_t code, const std::string& why);

  NcclOperation op_;
  bool failed_ = false;
  std::vector<Incoming> incoming_;
  std::list<std::vector<char>> outgoing_;
  std::vector<MPI_Request> requests_;
};

size_t Exchange::send_bytes() const {
  const bool to_each = op_.kind == Collective::reduce_scatter || op_.kind == Collective::all_to_all;
  return to_each ? bytes() * static_cast<size_t>(op_.communicator->size()) : bytes();
}

size_t Exchange::receive_bytes() const {
  const bool of_each = op_.kind == Collective::all_gather || op_.kind == Collective::all_to_all;
  return of_each ? bytes() * static_cast<size_t>(op_.communicator->size()) : bytes();
}

bool Exchange::sends_to(int rank) const {
  switch (op_.kind) {
    case Collective::broadcast:
      return op_.communicator->rank == op_.peer;
    case Collective::reduce:
    case Collective::send:
      return rank == op_.peer;
    case Collective::receive:
      return false;
    default:
      return true;
  }
}

bool Exchange::receives_from(int rank) const {
  switch (op_.kind) {
    case Collective::broadcast:
    case Collective::receive:
      return rank == op_.peer;
    case Collective::reduce:
      return op_.communicator->rank == op_.peer;
    case Collective::send:
      return false;
    default:
      return true;
  }
}

void Exchange::fail(ncclResult_t code, const std::string& why) {
  failed_ = true;
  op_.communicator->error = nccl_error(code, why);
}

void Exchange::start() {
  const bool sends = op_.send != nullptr, receives = op_.receive != nullptr;
  if ((sends && !check_range(op_.send, send_bytes(), "what NCCL sends")) ||
      (receives && !check_range(op_.receive, receive_bytes(), "what NCCL receives"))) {
    fail(ncclUnhandledCudaError, "a buffer that is not there");
  }
  for (int rank = 0; rank < op_.communicator->size(); rank++) {
    if (sends_to(rank)) send_to(rank);
    if (receives_from(rank)) incoming_.push_back({rank, {}, false});
  }
}

void Exchange::send_to(int rank) {
  const Header header = header_of(op_);
  const size_t payload = failed_ ? 0 : bytes();
  std::vector<char>& message = outgoing_.emplace_back(sizeof(header) + payload);
  std::memcpy(message.data(), &header, sizeof(header));
  const bool to_each = op_.kind == Collective::reduce_scatter || op_.kind == Collective::all_to_all;
  const size_t offset = to_each ? bytes() * static_cast<size_t>(rank) : 0;
  if (payload > 0) {
    std::memcpy(message.data() + sizeof(header), static_cast<const char*>(op_.send) + offset,
                payload);
  }
  MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE,
            op_.communicator->world_ranks[static_cast<size_t>(rank)],
            op_.communicator->tag(channel()), MPI_COMM_WORLD, &requests_.emplace_back());
}

bool Exchange::progress(std::set<std::tuple<ncclComm*, Channel, int>>& blocked) {
  bool complete = true;
  for (Incoming& in : incoming_) {
    if (in.arrived) continue;
    const std::tuple source{op_.communicator, channel(), in.rank};
    int arrived = 0;
    MPI_Message message;
    MPI_Status status;
    if (!blocked.contains(source)) {
      MPI_Improbe(op_.communicator->world_ranks[static_cast<size_t>(in.rank)],
                  op_.communicator->tag(channel()), MPI_COMM_WORLD, &arrived, &message, &status);
    }
    if (arrived == 0) {
      blocked.insert(source);
      complete = false;
      continue;
    }
    int size = 0;
    MPI_Get_count(&status, MPI_BYTE, &size);
    in.message.resize(static_cast<size_t>(size));
    MPI_Mrecv(in.message.data(), size, MPI_BYTE, &message, MPI_STATUS_IGNORE);
    in.arrived = true;
  }
  int sent = 0;
  MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &sent, MPI_STATUSES_IGNORE);
  return complete && sent != 0;
}

void Exchange::finish() {
  std::vector<const char*> parts;
  for (const Incoming& in : incoming_) {
    Header header{};
    std::memcpy(&header, in.message.data(), sizeof(header));
    const Header own = header_of(op_);
    if (header != own) {
      fail(ncclInvalidUsage, "rank " + std::to_string(in.rank) + " disagrees: " + text_of(header) +
                                 ", here " + text_of(own));
    } else if (in.message.size() != sizeof(header) + bytes()) {
      fail(ncclRemoteError, "rank " + std::to_string(in.rank) + " had nothing to send");
    }
    parts.push_back(in.message.data() + sizeof(header));
  }
  if (op_.receive == nullptr || parts.empty()) return;
  if (!check_range(op_.receive, receive_bytes(), "what NCCL receives")) return;
  auto* to = static_cast<char*>(op_.receive);
  if (failed_) {
    std::memset(to, 0xff, receive_bytes());
  } else if (op_.reduces()) {
    reduce(parts, to, op_.count, op_.type, op_.reduction);
  } else {
    for (size_t i = 0; i < parts.size(); i++) {
      if (bytes() > 0) std::memcpy(to + i * bytes(), parts[i], bytes());
    }
  }
}

// Whether the environment wants this process's operation of that number to break.
bool is_to_break(uint64_t number) {
  const char* text = std::getenv("LOCKSTEP_EMULATION_NCCL_FAIL");
  int rank = -1, first = -1, world_rank = 0;
  if (text == nullptr || std::sscanf(text, "%d:%d", &rank, &first) != 2) return false;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  return rank == world_rank && number >= static_cast<uint64_t>(first);
}

// The operations of a group, in flight together.
class GroupRun {
 public:
  explicit GroupRun(const std::vector<NcclOperation>& operations) {
    for (const NcclOperation& op : operations) {
      exchanges_.emplace_back(op);
      if (!numbers_.contains(op.communicator)) {
        numbers_[op.communicator] = op.communicator->num_issued++;
      }
    }
  }

  bool step() {
    // Drawn first: no lock is taken while MPI's is held. They make a seed's schedule repeat itself
    // though peers are early or late.
    if (polls_left_ < 0) polls_left_ = static_cast<int>(random_number() % 8);
    const std::lock_guard lock(mpi_mutex());
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized != 0 || is_aborted()) return true;
    if (!started_) {
      for (const auto& [communicator, number] : numbers_) {
        if (communicator->num_finished != number) return false;
      }
      start();
    }
    if (broken_) return false;
    if (polls_left_ > 0) {
      polls_left_--;
      return false;
    }
    if (!progress()) return false;
    for (Exchange& exchange : exchanges_) exchange.finish();
    for (const auto& [communicator, number] : numbers_) communicator->num_finished = number + 1;
    return true;
  }

  bool is_aborted() const {
    return std::ranges::any_of(numbers_,
                               [](const auto& each) { return each.first->aborted.load(); });
  }

 private:
  void start() {
    started_ = true;
    for (const auto& [communicator, number] : numbers_) {
      if (!is_to_break(number)) continue;
      broken_ = true;
      communicator->error = nccl_error(ncclRemoteError, "this operation was to fail");
    }
    if (broken_) return;
    for (Exchange& exchange : exchanges_) exchange.start();
  }

  // Waits for a moment: peers run other communicators' operations in an order of their own.
  bool progress() {
    constexpr auto kMoment = std::chrono::milliseconds(5);
    const auto begin = Clock::now();
    for (;;) {
      std::set<std::tuple<ncclComm*, Channel, int>> blocked;
      bool complete = true;
      for (Exchange& exchange : exchanges_) complete &= exchange.progress(blocked);
      if (complete) return true;
      if (late_ || is_aborted() || Clock::now() - begin > kMoment) break;
      std::this_thread::yield();
    }
    late_ = true;
    return false;
  }

  std::list<Exchange> exchanges_;
  std::map<ncclComm*, uint64_t> numbers_;
  bool started_ = false, broken_ = false, late_ = false;
  int polls_left_ = -1;
};

}  // namespace

size_t element_bytes(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

MakeStep make_group(std::vector<NcclOperation> operations) {
  // What makes steps lives as long as the graph that it is in, or else for the call.
  for (const NcclOperation& op : operations) op.communicator->num_held++;
  const std::shared_ptr<void> held(nullptr, [operations](void*) {
    for (const NcclOperation& op : operations) op.communicator->num_held--;
  });
  return [operations = std::move(operations), held] {
    auto run = std::make_shared<GroupRun>(operations);
    return Step([run] {
      if (!run->step()) return false;
      // MPI may still read and write the buffers of what was aborted: they stay for ever.
      static auto* aborted = new std::vector<std::shared_ptr<GroupRun>>;
      if (run->is_aborted()) aborted->push_back(run);
      return true;
    });
  };
}

}  // namespace cuda_emulation
