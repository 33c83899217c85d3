#include "comm/pair_rates.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "comm/check_mpi.h"

namespace lockstep {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTag = 2;
constexpr int kSmallBytes = 8, kProbeBytes = 256 << 10, kLargeBytes = 4 << 20;
constexpr int kSmallTimes = 50, kLargeTimes = 4;
constexpr double kSlowProbe_s = 0.05;  // a probe that takes longer is measurement enough

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Pair {
 public:
  Pair(int peer, bool first, double deadline_s)
      : peer_(peer), first_(first), deadline_s_(deadline_s), buffer_(kLargeBytes) {}

  PairRate measure() {
    PairRate rate{.peer = peer_};
    rate.latency_s = shortest(kSmallBytes, kSmallTimes) / 2;
    const double probe = shortest(kProbeBytes, 2) / 2;
    rate.bytes_per_second = kProbeBytes / probe;
    // Both must take the same way: what the first of them measured decides.
    buffer_[0] = probe < kSlowProbe_s ? 1 : 0;
    transfer(first_, 1);
    if (buffer_[0] != 0)
      rate.bytes_per_second = kLargeBytes / (shortest(kLargeBytes, kLargeTimes) / 2);
    return rate;
  }

 private:
  // The shortest time of a message there and one back.
  double shortest(int size, int times) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i <= times; i++) {  // the first sets up the connection
      const auto start = Clock::now();
      transfer(first_, size);
      transfer(!first_, size);
      if (i > 0) best = std::min(best, seconds_since(start));
    }
    return best;
  }

  void transfer(bool send, int size) {
    void* const data = buffer_.data();
    MPI_Request request;
    if (send) {
      CHECK_MPI(MPI_Isend(data, size, MPI_BYTE, peer_, kTag, MPI_COMM_WORLD, &request),
                "measuring a link");
    } else {
      CHECK_MPI(MPI_Irecv(data, size, MPI_BYTE, peer_, kTag, MPI_COMM_WORLD, &request),
                "measuring a link");
    }
    const auto start = Clock::now();
    for (int done = 0;;) {
      CHECK_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "measuring a link");
      if (done != 0) return;
      if (seconds_since(start) > deadline_s_) {
        MPI_Cancel(&request);  // the buffer is about to go
        MPI_Request_free(&request);
        throw DeviceError(
            "a message {} worker {} did not arrive within {:.0f} s\nCheck the network between "
            "their hosts: a firewall, or an interface that only one of them has (mpirun --mca "
            "btl_tcp_if_include NAME).",
            send ? "to" : "from", peer_, deadline_s_);
      }
      sched_yield();
    }
  }

  const int peer_;
  const bool first_;
  const double deadline_s_;
  std::vector<char> buffer_;
};

}  // namespace

std::vector<PairRate> measure_pairs(MpiSession& session, const std::vector<int>& ranks,
                                    double deadline_s) {
  // A tournament: one stays in its place, the others move on by one each round, and who stand
  // opposite each other meet. An odd number gets one more, whom nobody meets.
  const int players = static_cast<int>(ranks.size() + ranks.size() % 2);
  const auto at = [&](int round, int place) {
    const int player = place == 0 ? 0 : 1 + (place - 1 + round) % (players - 1);
    return player < static_cast<int>(ranks.size()) ? ranks[static_cast<size_t>(player)] : -1;
  };
  std::vector<PairRate> rates;
  for (int round = 0; round + 1 < players; round++) {
    session.world().barrier();
    for (int place = 0; place < players / 2; place++) {
      const int a = at(round, place), b = at(round, players - 1 - place);
      if (a < 0 || b < 0 || (a != session.rank() && b != session.rank())) continue;
      const bool first = session.rank() == std::min(a, b);
      const PairRate rate = Pair(session.rank() == a ? b : a, first, deadline_s).measure();
      if (first) rates.push_back(rate);
    }
  }
  session.world().barrier();
  return rates;
}

}  // namespace lockstep
