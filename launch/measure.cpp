#include "launch/measure.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "core/tensor.h"

namespace lockstep::launch {
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
