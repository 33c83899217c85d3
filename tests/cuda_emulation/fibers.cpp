#include "cuda_emulation/fibers.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {
namespace {

namespace context = boost::context::detail;  // the bare switch: a kernel's stack is never unwound

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned char kPoison = 0xff;  // all ones are NaN in fp32, bf16 and fp16

// AddressSanitizer must hear of each change of stack.
struct StackSwitch {
#if defined(__SANITIZE_ADDRESS__)
  void leave(const void* stack, size_t size) {
    __sanitizer_start_switch_fiber(&saved, stack, size);
  }
  void arrive(const void** from = nullptr, size_t* size = nullptr) {
    __sanitizer_finish_switch_fiber(saved, from, size);
  }
  void* saved = nullptr;
#else
  void leave(const void*, size_t) {}
  void arrive(const void** = nullptr, size_t* = nullptr) {}
#endif
};

struct Fiber {
  Fiber() {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack = static_cast<char*>(memory);
    mprotect(stack, kPage, PROT_NONE);  // an overflow faults
  }
  ~Fiber() { munmap(stack, kStackBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  char* stack;
  context::fcontext_t resume_at = nullptr;
  StackSwitch stack_switch;
  ThreadState thread;  // the CUDA thread that it runs
};

// Lanes that wait for each other. Values stand in two rows by turns: a lane that runs ahead to the
// next exchange must not overwrite what a slower one has yet to read.
struct Exchange {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  unsigned turn = 0;
  uint64_t values[2][kWarpSize];
  std::vector<Fiber*> waiting;
};

struct Warp {
  uint32_t present = 0;
  uint32_t ended = 0;
  std::vector<std::unique_ptr<Exchange>> exchanges;  // one for each mask in use

  uint32_t expected(const Exchange& e) const { return e.mask & ~ended; }
};

class BlockRunner {
 public:
  void begin_grid(const Grid& grid, ThreadOrder order, uint64_t seed,
                  const std::function<void()>& thread);
  bool run_block(uint3 index);  // false: some threads wait for ever; not usable afterwards
  std::string stuck() const;

  void synchronize_block();
  const uint64_t* exchange(uint32_t mask, uint64_t value);

 private:
  static void enter(context::transfer_t from);
  void run_unstarted_threads();
  void end_thread(const ThreadState& thread);
  void finish_exchange(Exchange& e);
  void switch_to(Fiber* fiber);
  void wait();  // the current fiber; until somebody makes it ready
  Fiber* free_fiber();
  Fiber* next_ready();
  void make_ready(std::vector<Fiber*>& fibers);

  BlockState block_;
  ThreadOrder order_ = ThreadOrder::forward;
  std::mt19937_64 random_;
  bool one_warp_ahead_ = false;  // in random order: a warp has all turns until it waits for others
  const std::function<void()>* thread_ = nullptr;
  int num_threads_ = 0, num_started_ = 0, num_ended_ = 0;
  std::vector<int> turns_;  // threads in the order in which they start
  std::vector<Warp> warps_;
  std::vector<Fiber*> ready_, at_barrier_;
  size_t first_ready_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
  Fiber* current_ = nullptr;
  context::fcontext_t main_ = nullptr;
  StackSwitch main_switch_;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
  std::vector<unsigned char> shared_;
};

BlockRunner* runner = nullptr;  // the one that runs; set by run_grid()

void BlockRunner::begin_grid(const Grid& grid, ThreadOrder order, uint64_t seed,
                             const std::function<void()>& thread) {
  block_.threads = grid.threads;
  block_.blocks = grid.blocks;
  thread_ = &thread;
  num_threads_ = static_cast<int>(grid.threads.x * grid.threads.y * grid.threads.z);
  if (static_cast<int>(turns_.size()) != num_threads_ || order != order_) {
    turns_.resize(static_cast<size_t>(num_threads_));
    std::iota(turns_.begin(), turns_.end(), 0);
    if (order == ThreadOrder::reverse) std::reverse(turns_.begin(), turns_.end());
  }
  order_ = order;
  if (order == ThreadOrder::random) random_.seed(seed);
  constexpr size_t kAlignment = 16;
  shared_.resize(grid.shared_bytes + kAlignment);
  void* aligned = shared_.data();
  size_t space = shared_.size();
  block_.dynamic_shared = std::align(kAlignment, grid.shared_bytes, aligned, space);
  const int num_warps = (num_threads_ + kWarpSize - 1) / kWarpSize;
  warps_.resize(static_cast<size_t>(num_warps));
  for (int w = 0; w < num_warps; w++) {
    const int lanes = std::min(kWarpSize, num_threads_ - w * kWarpSize);
    warps_[static_cast<size_t>(w)].present = ~0u >> (kWarpSize - lanes);
  }
}

bool BlockRunner::run_block(uint3 index) {
  block_.index = index;
  num_started_ = num_ended_ = 0;
  for (Warp& warp : warps_) warp.ended = 0;
  std::memset(shared_.data(), kPoison, shared_.size());
  if (order_ == ThreadOrder::random) {
    std::shuffle(turns_.begin(), turns_.end(), random_);
    one_warp_ahead_ = random_() % 2 == 0;
  }
  this_block = &block_;
  while (num_ended_ < num_threads_) {
    if (Fiber* fiber = next_ready()) {
      switch_to(fiber);
    } else if (num_started_ < num_threads_) {
      switch_to(free_fiber());
    } else {
      return false;
    }
  }
  return true;
}

std::string BlockRunner::stuck() const {
  return "in block " + std::to_string(block_.index.x) + "," + std::to_string(block_.index.y) + "," +
         std::to_string(block_.index.z) + " " + std::to_string(num_threads_ - num_ended_) +
         " threads wait for ever, " + std::to_string(at_barrier_.size()) +
         " of them at __syncthreads()";
}

// Threads that have not started run back to back on one fiber until one of them waits.
void BlockRunner::run_unstarted_threads() {
  Fiber* self = current_;
  ThreadState& thread = self->thread;
  while (num_started_ < num_threads_) {
    thread.number = turns_[static_cast<size_t>(num_started_++)];
    const auto number = static_cast<unsigned>(thread.number);
    const dim3 size = block_.threads;
    thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
    (*thread_)();
    end_thread(thread);
  }
  free_.push_back(self);
}

void BlockRunner::enter(context::transfer_t from) {
  runner->main_ = from.fctx;
  runner->current_->stack_switch.arrive(&runner->main_stack_, &runner->main_stack_bytes_);
  for (;;) {
    runner->run_unstarted_threads();
    runner->wait();
  }
}

void BlockRunner::switch_to(Fiber* fiber) {
  current_ = fiber;
  this_thread = &fiber->thread;
  main_switch_.leave(fiber->stack, kStackBytes);
  fiber->resume_at = context::jump_fcontext(fiber->resume_at, nullptr).fctx;
  main_switch_.arrive();
}

void BlockRunner::wait() {
  Fiber* self = current_;
  self->stack_switch.leave(main_stack_, main_stack_bytes_);
  main_ = context::jump_fcontext(main_, nullptr).fctx;
  self->stack_switch.arrive(&main_stack_, &main_stack_bytes_);
}

Fiber* BlockRunner::free_fiber() {
  if (free_.empty()) {
    auto fiber = std::make_unique<Fiber>();
    fiber->resume_at = context::make_fcontext(fiber->stack + kStackBytes, kStackBytes, enter);
    free_.push_back(fiber.get());
    fibers_.push_back(std::move(fiber));
  }
  Fiber* fiber = free_.back();
  free_.pop_back();
  return fiber;
}

Fiber* BlockRunner::next_ready() {
  if (first_ready_ == ready_.size()) {
    ready_.clear();
    first_ready_ = 0;
    return nullptr;
  }
  if (order_ == ThreadOrder::random) {
    const auto first = ready_.begin() + static_cast<std::ptrdiff_t>(first_ready_);
    auto chosen = ready_.end();
    if (one_warp_ahead_) {
      const auto warp_of = [](const Fiber* fiber) { return fiber->thread.number / kWarpSize; };
      chosen = std::find_if(first, ready_.end(),
                            [&](Fiber* fiber) { return warp_of(fiber) == warp_of(current_); });
    }
    if (chosen == ready_.end()) {
      chosen = first + static_cast<std::ptrdiff_t>(random_() % (ready_.size() - first_ready_));
    }
    std::swap(*first, *chosen);
  }
  return ready_[first_ready_++];
}

void BlockRunner::make_ready(std::vector<Fiber*>& fibers) {
  ready_.insert(ready_.end(), fibers.begin(), fibers.end());
  fibers.clear();
}

void BlockRunner::end_thread(const ThreadState& thread) {
  num_ended_++;
  Warp& warp = warps_[static_cast<size_t>(thread.number / kWarpSize)];
  warp.ended |= 1u << (thread.number % kWarpSize);
  for (auto& e : warp.exchanges) {  // nobody waits for a thread that has ended
    if (e->arrived != 0 && e->arrived == warp.expected(*e)) finish_exchange(*e);
  }
  if (!at_barrier_.empty() && static_cast<int>(at_barrier_.size()) == num_threads_ - num_ended_) {
    make_ready(at_barrier_);
  }
}

void BlockRunner::synchronize_block() {
  const bool last = static_cast<int>(at_barrier_.size()) + 1 == num_threads_ - num_ended_;
  at_barrier_.push_back(current_);
  if (last) {
    // In forward order the last to arrive goes on by itself, which saves a switch.
    if (order_ == ThreadOrder::forward) at_barrier_.pop_back();
    make_ready(at_barrier_);
    if (order_ == ThreadOrder::forward) return;
  }
  wait();
}

void BlockRunner::finish_exchange(Exchange& e) {
  e.turn++;
  e.arrived = 0;
  make_ready(e.waiting);
}

const uint64_t* BlockRunner::exchange(uint32_t mask, uint64_t value) {
  Warp& warp = warps_[static_cast<size_t>(current_->thread.number / kWarpSize)];
  const int own = current_->thread.number % kWarpSize;
  mask = (mask & warp.present) | 1u << own;
  Exchange* e = nullptr;
  for (auto& candidate : warp.exchanges) {
    if (candidate->mask == mask) e = candidate.get();
  }
  if (e == nullptr) {
    e = warp.exchanges.emplace_back(std::make_unique<Exchange>()).get();
    e->mask = mask;
  }
  uint64_t* values = e->values[e->turn % 2];
  if (e->arrived == 0) std::memset(values, kPoison, sizeof(e->values[0]));
  values[own] = value;
  e->arrived |= 1u << own;
  if (e->arrived == warp.expected(*e)) {
    finish_exchange(*e);
  } else {
    e->waiting.push_back(current_);
    wait();
  }
  return values;
}

// A permutation of [0, n) without a table: forwards, backwards, or in strides from a random place.
class BlockOrder {
 public:
  BlockOrder(uint64_t n, ThreadOrder order, uint64_t seed) : n_(n) {
    if (order == ThreadOrder::reverse) first_ = stride_ = n - 1;
    if (order != ThreadOrder::random) return;
    std::mt19937_64 random(seed);
    first_ = random() % n;
    stride_ = random() % n;
    while (std::gcd(stride_, n) != 1) stride_ = (stride_ + 1) % n;
  }
  uint64_t operator()(uint64_t turn) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((Wide{turn} * stride_ + first_) % n_);
  }

 private:
  uint64_t n_, first_ = 0, stride_ = 1;
};

}  // namespace

std::string run_grid(const Grid& grid, ThreadOrder order, uint64_t seed,
                     const std::function<void()>& thread) {
  static std::unique_ptr<BlockRunner> cached;  // with its stacks
  if (cached == nullptr) cached = std::make_unique<BlockRunner>();
  runner = cached.get();
  runner->begin_grid(grid, order, seed, thread);
  const uint64_t columns = grid.blocks.x, rows = grid.blocks.y;
  const uint64_t num_blocks = columns * rows * grid.blocks.z;
  const BlockOrder nth(num_blocks, order, seed);
  for (uint64_t turn = 0; turn < num_blocks; turn++) {
    const uint64_t i = nth(turn);
    const uint3 index{static_cast<unsigned>(i % columns), static_cast<unsigned>(i / columns % rows),
                      static_cast<unsigned>(i / (columns * rows))};
    if (!runner->run_block(index)) {
      std::string stuck = runner->stuck();
      cached.reset();
      return stuck;
    }
  }
  return {};
}

void synchronize_block() { runner->synchronize_block(); }
const uint64_t* exchange(uint32_t mask, uint64_t value) { return runner->exchange(mask, value); }

}  // namespace cuda_emulation
