#include "cuda_emulation/device_code.h"

namespace cuda_emulation {

cudaError_t check_launch(dim3 blocks, dim3 threads, size_t shared_bytes) {
  constexpr uint64_t kMostThreads = 1024, kMostShared = 227 * 1024;  // compute capability 9.0
  constexpr unsigned kMostThreadsZ = 64, kMostBlocks = 0x7fffffff, kMostBlocksYZ = 65535;
  const uint64_t num_threads = uint64_t{threads.x} * threads.y * threads.z;
  if (num_threads == 0 || num_threads > kMostThreads || threads.z > kMostThreadsZ ||
      blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > kMostBlocks ||
      blocks.y > kMostBlocksYZ || blocks.z > kMostBlocksYZ || shared_bytes > kMostShared) {
    return report(cudaErrorInvalidConfiguration,
                  "a launch with a bad grid, block or shared memory");
  }
  return cudaSuccess;
}

void run_kernel(const Grid& grid, const std::function<void()>& thread) {
  Scheduler& scheduler = Scheduler::instance();
  ThreadOrder order = ThreadOrder::forward;
  uint64_t seed = 0;
  {
    const auto lock = scheduler.lock();
    order = scheduler.thread_order();
    seed = scheduler.random();
  }
  const std::string stuck = run_grid(grid, order, seed, thread);
  if (!stuck.empty()) report(cudaErrorLaunchTimeout, "a kernel hangs: " + stuck);
}

}  // namespace cuda_emulation
