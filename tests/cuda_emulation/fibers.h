#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>

// Runs a kernel's threads on the CPU: one fiber each, of which one runs at a time, so that a thread
// may wait at a barrier or exchange values with its warp. A thread that never waits costs a
// function call; a block without barriers runs on a single fiber.
namespace cuda_emulation {

inline constexpr int kWarpSize = 32;

// In which order the blocks of a grid and the threads of a block get their turns. A right kernel
// does not depend on it.
enum class ThreadOrder { forward, reverse, random };

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;  // of dynamic shared memory, which a block finds full of NaN
};

// Runs thread() for each thread of the grid, blocks one after the other. Returns what went wrong (a
// barrier that some threads never reach), or "". Not reentrant: a device runs one kernel at a time.
std::string run_grid(const Grid& grid, ThreadOrder order, uint64_t seed,
                     const std::function<void()>& thread);

// What device code asks about itself. Valid while run_grid() runs.
struct ThreadState {
  uint3 index{};   // threadIdx
  int number = 0;  // of the thread in its block
};
struct BlockState {
  uint3 index{};  // blockIdx
  dim3 threads;   // blockDim
  dim3 blocks;    // gridDim
  void* dynamic_shared = nullptr;
};
inline const ThreadState* this_thread = nullptr;
inline const BlockState* this_block = nullptr;

inline int lane() { return this_thread->number % kWarpSize; }

// __syncthreads(): returns once each thread of the block that has not ended has called it.
void synchronize_block();

// Returns the values that the lanes of `mask` brought, by lane, once all of them have called it;
// the place of a lane that is not there holds all ones. Valid until this lane's next exchange.
const uint64_t* exchange(uint32_t mask, uint64_t value);

}  // namespace cuda_emulation
