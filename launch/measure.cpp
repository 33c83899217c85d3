#include "launch/measure.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace lockstep::launch {
namespace {

// The shortest time of a call, in seconds: the first warms up, then for `budget` seconds.
template <class F>
double shortest(double budget, F&& call) {
  using Clock = std::chrono::steady_clock;
  call();
  double best = 1e30, spent = 0;
  while (spent < budget) {
    const auto start = Clock::now();
    call();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

}  // namespace

double memory_rate() {
  constexpr int64_t kBytes = int64_t{512} << 20, kGrain = int64_t{1} << 20;  // in 8-byte words
  const Buffer memory(kBytes);
  const auto* words = static_cast<const uint64_t*>(memory.tensor(DType::fp32, {kBytes / 4}).data());
  std::fill_n(const_cast<uint64_t*>(words), kBytes / 8, uint64_t{1});
  std::vector<uint64_t> sums(static_cast<size_t>(kBytes / 8 / kGrain));
  const double seconds = shortest(0.4, [&] {
    parallel_for(kBytes / 8, kGrain, [&](int64_t begin, int64_t end) {
      sums[static_cast<size_t>(begin / kGrain)] =
          std::accumulate(words + begin, words + end, uint64_t{0});
    });
  });
  CHECK(std::accumulate(sums.begin(), sums.end(), uint64_t{0}) == uint64_t{kBytes / 8});
  return static_cast<double>(kBytes) / seconds;
}

double memory_rate(Device device) {
  if (device == Device::cpu) return memory_rate();
  constexpr int64_t kBytes = int64_t{256} << 20;
  const Buffer from(DType::fp32, {kBytes / 4}, device), to(DType::fp32, {kBytes / 4}, device);
  Stream stream(device);
  const double seconds = shortest(0.2, [&] {
    copy(to.tensor(), from.tensor(), stream);
    stream.synchronize();
  });
  return 2 * static_cast<double>(kBytes) / seconds;
}

double all_reduce_rate(Communicator& communicator) {
  constexpr int64_t kCount = int64_t{8} << 20;
  constexpr int kRepetitions = 5;  // the same number on every worker
  const Buffer gradients(DType::fp32, {kCount});
  Stream stream;
  double best = 0;
  for (int i = 0; i < kRepetitions; i++) {
    communicator.barrier();
    const auto start = std::chrono::steady_clock::now();
    communicator.all_reduce(gradients.tensor(), ReduceOp::sum, stream);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(gradients.size_bytes()) / elapsed.count());
  }
  return best;
}

double disk_rate(const std::filesystem::path& folder) {
  constexpr size_t kPiece = size_t{4} << 20, kPieces = 32;
  const auto file = (folder / fmt::format(".lockstep-doctor-{}", getpid())).string();
  const int descriptor = open(file.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
  const auto fail = [&] {
    const std::string reason = std::strerror(errno);
    if (descriptor >= 0) {
      close(descriptor);
      unlink(file.c_str());
    }
    throw DataError("{}: cannot be written: {}", folder.string(), reason);
  };
  if (descriptor < 0) fail();
  // Not zeros, which some file systems do not store.
  std::vector<char> piece(kPiece);
  for (size_t i = 0; i < kPiece; i++) piece[i] = static_cast<char>((i * 2654435761u) >> 13);
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < kPieces; i++) {
    for (size_t done = 0; done < kPiece;) {
      const ssize_t written = write(descriptor, piece.data() + done, kPiece - done);
      if (written <= 0) fail();
      done += static_cast<size_t>(written);
    }
  }
  if (fsync(descriptor) != 0) fail();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  close(descriptor);
  unlink(file.c_str());
  return static_cast<double>(kPiece * kPieces) / elapsed.count();
}

}  // namespace lockstep::launch
