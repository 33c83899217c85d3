// emu.h - run CUDA kernels written in plain CUDA C++ on the CPU, one fiber per CUDA thread.
// nvcc:  kernels compile as CUDA, launch() is cudaLaunchKernelEx.      g++/clang++: kernels are
// plain functions. Rules for kernel source: no <<<>>> (use launch), no `extern __shared__` (use
// DYN_SHARED), no inline PTX/cub/cooperative_groups.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstddef>
#include <cstdint>
#include <utility>
#include "emulated_device.h"
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#else
#include <boost/context/detail/fcontext.hpp>
#endif
#include <sys/mman.h>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ \
  static thread_local  // one block at a time per OS thread; all its fibers stay on that thread

namespace emu {
enum class Order { forward, reverse, random };
struct Config {
  Order order = Order::forward;
  uint64_t seed = 1;
  int workers = 1;
  size_t stack = 64 * 1024;
};
inline Config config;

struct Block;
struct Fiber {
#ifdef EMU_UCONTEXT
  ucontext_t ctx;
#else
  boost::context::detail::fcontext_t ctx = nullptr;
#endif
  char* stack = nullptr;
  size_t size = 0;
  bool started = false;
  uint3 tid{};
  int lin = 0;
  void* asan = nullptr;
};
inline thread_local Block* blk = nullptr;
inline thread_local Fiber* cur = nullptr;

struct Rendezvous {
  uint32_t mask = 0, arrived = 0, gen = 0;
  uint64_t val[2][32];
  Fiber* wait[32];
  int nwait = 0;
};
struct Warp {
  uint32_t exited = 0, size = 0;
  std::vector<std::unique_ptr<Rendezvous> > rv;
};

struct Block {
  dim3 grid, block;
  uint3 bid{};
  int n = 0, next = 0, done = 0;
  std::function<void()> body;
  std::vector<Warp> warps;
  std::vector<Fiber*> ready, at_bar;
  size_t rhead = 0;
  std::vector<int> order;
  std::vector<std::unique_ptr<Fiber> > pool;
  std::vector<Fiber*> idle;
  std::vector<unsigned char> dynbuf;
  unsigned char* dyn = nullptr;
  std::mt19937_64 rng;
  std::string err;
#ifdef EMU_UCONTEXT
  ucontext_t main;
#else
  boost::context::detail::fcontext_t main = nullptr;
#endif
  void* asan = nullptr;
  const void* mstack = nullptr;
  size_t msize = 0;

  ~Block() {
    for (auto& f : pool) munmap(f->stack, f->size);
  }
  // ---- context switching
  void to_main() {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&cur->asan, mstack, msize);
#endif
#ifdef EMU_UCONTEXT
    Fiber* f = cur;
    swapcontext(&f->ctx, &main);
#else
    main = boost::context::detail::jump_fcontext(main, nullptr).fctx;
#endif
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(cur->asan, &mstack, &msize);
#endif
  }
  void to_fiber(Fiber* f) {
    cur = f;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&asan, f->stack, f->size);
#endif
#ifdef EMU_UCONTEXT
    swapcontext(&main, &f->ctx);
#else
    f->ctx = boost::context::detail::jump_fcontext(f->ctx, this).fctx;
#endif
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(asan, nullptr, nullptr);
#endif
  }
#ifdef EMU_UCONTEXT
  static void entry(){
#else
  static void entry(boost::context::detail::transfer_t t) {
    blk->main = t.fctx;
#endif
#ifdef EMU_ASAN
      __sanitizer_finish_switch_fiber(nullptr, &blk->mstack, &blk->msize);
#endif
  for (;;) {  // run unstarted threads back to back: a kernel without barriers never switches
    Block& b = *blk;
    while (b.next < b.n && b.err.empty()) {
      b.begin(cur, b.order[b.next++]);
      b.body();
      b.finish(cur);
    }
    b.idle.push_back(cur);
    b.to_main();
  }
} Fiber* fresh() {
  if (!idle.empty()) {
    Fiber* f = idle.back();
    idle.pop_back();
    return f;
  }
  auto u = std::make_unique<Fiber>();
  Fiber* f = u.get();
  f->size = config.stack;
  f->stack = static_cast<char*>(mmap(nullptr, f->size, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mprotect(f->stack, 4096, PROT_NONE);  // guard page
#ifdef EMU_UCONTEXT
  getcontext(&f->ctx);
  f->ctx.uc_stack.ss_sp = f->stack;
  f->ctx.uc_stack.ss_size = f->size;
  f->ctx.uc_link = nullptr;
  makecontext(&f->ctx, entry, 0);
#else
    f->ctx = boost::context::detail::make_fcontext(f->stack + f->size, f->size, entry);
#endif
  pool.push_back(std::move(u));
  return f;
}
// ---- scheduling
void begin(Fiber* f, int lin) {
  f->lin = lin;
  f->tid.x = unsigned(lin) % block.x;
  f->tid.y = unsigned(lin) / block.x % block.y;
  f->tid.z = unsigned(lin) / (block.x * block.y);
}
void finish(Fiber* f) {
  ++done;
  Warp& w = warps[f->lin / 32];
  w.exited |= 1u << (f->lin % 32);
  for (auto& r : w.rv)
    if (r->arrived && (r->arrived == (r->mask & ~w.exited))) release(*r);
  if (!at_bar.empty() && int(at_bar.size()) == n - done) release_bar();
}
void release_bar() {
  ready.insert(ready.end(), at_bar.begin(), at_bar.end());
  at_bar.clear();
}
void release(Rendezvous& r) {
  ++r.gen;
  r.arrived = 0;
  ready.insert(ready.end(), r.wait, r.wait + r.nwait);
  r.nwait = 0;
}
void barrier() {
  if (int(at_bar.size()) + 1 == n - done) {
    release_bar();
    if (config.order == Order::forward) return;
    ready.push_back(cur);
    to_main();
    return;
  }
  at_bar.push_back(cur);
  to_main();
}
template <class T>
const uint64_t* exchange(uint32_t mask,
                         T v) {  // all live lanes of mask deposit v; returns the slot array
  static_assert(sizeof(T) <= 8);
  int lane = cur->lin % 32;
  Warp& w = warps[cur->lin / 32];
  mask &= w.size;
  if (!(mask >> lane & 1)) fail("warp op: calling lane not in its mask");
  Rendezvous* r = nullptr;
  for (auto& p : w.rv)
    if (p->mask == mask) r = p.get();
  if (!r) {
    w.rv.push_back(std::make_unique<Rendezvous>());
    r = w.rv.back().get();
    r->mask = mask;
  }
  uint64_t* s = r->val[r->gen & 1];
  std::memcpy(&s[lane], &v, sizeof(T));
  r->arrived |= 1u << lane;
  if (r->arrived == (mask & ~w.exited))
    release(*r);
  else {
    r->wait[r->nwait++] = cur;
    to_main();
  }
  return s;
}
void fail(const char* m) {
  char b[200];
  std::snprintf(b, sizeof b, "%s (block %u,%u thread %d)", m, bid.x, bid.y, cur ? cur->lin : -1);
  std::fprintf(stderr, "emu: %s\n", b);
  std::abort();
}
void run(uint3 id, size_t shared) {
  bid = id;
  n = int(block.x * block.y * block.z);
  next = done = 0;
  rhead = 0;
  ready.clear();
  at_bar.clear();
  warps.resize((n + 31) / 32);
  for (int i = 0; i < int(warps.size()); i++) {
    Warp& w = warps[i];
    w.exited = 0;
    int k = std::min(32, n - i * 32);
    w.size = k == 32 ? ~0u : (1u << k) - 1;
    for (auto& r : w.rv) r->arrived = 0, r->nwait = 0;
  }
  if (int(order.size()) != n) {
    order.resize(n);
    for (int i = 0; i < n; i++) order[i] = i;
    if (config.order == Order::reverse) std::reverse(order.begin(), order.end());
  }
  if (config.order == Order::random) {
    rng.seed(config.seed * 1000003 + id.x + 7919 * id.y);
    std::shuffle(order.begin(), order.end(), rng);
  }
  if (shared) {
    dynbuf.resize(shared + 16);
    dyn = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(dynbuf.data()) + 15) &
                                           ~uintptr_t(15));
    std::memset(dyn, 0xFF, shared);
  }
  for (;;) {
    if (rhead < ready.size()) {
      if (config.order == Order::random)
        std::swap(ready[rhead], ready[rhead + rng() % (ready.size() - rhead)]);
      Fiber* f = ready[rhead++];
      if (rhead == ready.size()) {
        ready.clear();
        rhead = 0;
      }
      to_fiber(f);
    } else if (next < n)
      to_fiber(fresh());
    else if (done == n)
      break;
    else {
      cur = at_bar.empty() ? nullptr : at_bar[0];
      fail("deadlock: not every live thread reached the barrier / warp op");
    }
  }
}
};  // namespace emu

template <class... K, class... A>
inline void run_grid(void (*k)(K...), dim3 g, dim3 b, size_t sh, A... a) {
  std::atomic<size_t> nextb{0};
  size_t total = size_t(g.x) * g.y * g.z;
  auto work = [&] {
    static thread_local std::unique_ptr<Block> cache;
    static thread_local Order co;
    if (!cache || co != config.order) {
      cache = std::make_unique<Block>();
      co = config.order;
    }
    Block* saved = blk;
    blk = cache.get();
    blk->grid = g;
    blk->block = b;
    blk->body = [&] { k(a...); };
    for (size_t i; (i = nextb++) < total;)
      blk->run(uint3{unsigned(i % g.x), unsigned(i / g.x % g.y), unsigned(i / (size_t(g.x) * g.y))},
               sh);
    blk = saved;
  };
  std::vector<std::thread> ts;
  for (int i = 1; i < config.workers && size_t(i) < total; i++) ts.emplace_back(work);
  work();
  for (auto& t : ts) t.join();
}
template <class T>
T shfl(uint32_t m, T v, int src, int w, bool ok) {
  const uint64_t* s = blk->exchange(m, v);
  int lane = cur->lin % 32;
  if (!ok) src = lane;
  (void)w;
  T r;
  std::memcpy(&r, &s[src & 31], sizeof(T));
  return r;
}
inline int lane() { return cur->lin % 32; }
}  // namespace emu

namespace cuda_emulation {
template <class... K, class... A>
inline cudaError_t launch(void (*k)(K...), dim3 g, dim3 b, size_t sh, cudaStream_t s, A&&... a) {
  if (size_t(b.x) * b.y * b.z > 1024 || !b.x || !b.y || !b.z || b.z > 64 || !g.x || !g.y || !g.z ||
      g.y > 65535 || g.z > 65535 || sh > 232448)
    return emudev::fail(cudaErrorInvalidConfiguration,
                        "launch: bad grid, block or shared memory size");
  return emudev::submit_fn(s, "kernel",
                           [k, g, b, sh, t = std::tuple<std::decay_t<K>...>(static_cast<K>(a)...)] {
                             std::apply(
                                 [&](auto... x) {
                                   if ((emudev::check_arg(x) && ...))
                                     emu::run_grid(k, g, b, sh, x...);
                                 },
                                 t);
                           });
}

inline void* dynamic_shared() { return emu::blk->dyn; }
}  // namespace cuda_emulation

#define threadIdx (emu::cur->tid)
#define blockIdx (emu::blk->bid)
#define blockDim (emu::blk->block)
#define gridDim (emu::blk->grid)
#define warpSize 32
inline void __syncthreads() { emu::blk->barrier(); }
inline void __syncwarp(unsigned m = ~0u) { emu::blk->exchange(m, 0); }
template <class T>
T __shfl_sync(unsigned m, T v, int s, int w = 32) {
  return emu::shfl(m, v, (emu::lane() & ~(w - 1)) + (s & (w - 1)), w, true);
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) {
  int l = emu::lane(), s = l ^ x;
  return emu::shfl(m, v, s, w, s / w <= l / w);
}
template <class T>
T __shfl_down_sync(unsigned m, T v, int d, int w = 32) {
  int l = emu::lane();
  return emu::shfl(m, v, l + d, w, (l & (w - 1)) + d < w);
}
template <class T>
T __shfl_up_sync(unsigned m, T v, int d, int w = 32) {
  int l = emu::lane();
  return emu::shfl(m, v, l - d, w, (l & (w - 1)) - d >= 0);
}
inline unsigned __ballot_sync(unsigned m, int p) {
  const uint64_t* s = emu::blk->exchange<uint32_t>(m, p != 0);
  unsigned r = 0;
  for (int i = 0; i < 32; i++)
    if ((m & emu::blk->warps[emu::cur->lin / 32].size) >> i & 1) r |= uint32_t(s[i] & 1) << i;
  return r;
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, !p) == 0; }
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
inline float atomicAdd(float* p, float v) { return std::atomic_ref<float>(*p).fetch_add(v); }
inline double atomicAdd(double* p, double v) { return std::atomic_ref<double>(*p).fetch_add(v); }
inline int atomicAdd(int* p, int v) { return std::atomic_ref<int>(*p).fetch_add(v); }
inline unsigned atomicAdd(unsigned* p, unsigned v) {
  return std::atomic_ref<unsigned>(*p).fetch_add(v);
}
inline int atomicMax(int* p, int v) {
  std::atomic_ref<int> r(*p);
  int o = r.load();
  while (o < v && !r.compare_exchange_weak(o, v)) {
  }
  return o;
}
inline unsigned atomicCAS(unsigned* p, unsigned c, unsigned v) {
  std::atomic_ref<unsigned>(*p).compare_exchange_strong(c, v);
  return c;
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() {}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
#define __expf(x) expf(x)
#define __logf(x) logf(x)
inline float __int_as_float(int i) { return std::bit_cast<float>(i); }
inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __float2bfloat16_rn(
      std::fma(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
