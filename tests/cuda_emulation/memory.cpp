#include "cuda_emulation/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda_emulation/scheduler.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_emulation {
namespace {

constexpr unsigned char kPoison = 0xff;  // all ones are NaN in fp32, bf16 and fp16
constexpr size_t kPage = 4096;
constexpr size_t kRedZone = 256;  // also what keeps allocations aligned to 256 bytes, and no more
constexpr size_t kArenaBytes = size_t{1} << 40;
constexpr size_t kQuarantineBytes = size_t{64} << 20;  // of freed memory that is still readable
constexpr size_t kH100Bytes = 85'029'158'912;

enum class State { pending, live, freed };

struct Allocation {
  size_t size;
  MemoryKind kind;
  State state;
  size_t span;  // with its red zones, from `kRedZone` bytes before it
  bool of_nccl = false;
  int holders = 0;
};

// Addresses are given out once: one that was freed faults when it has left the quarantine.
struct Arena {
  Arena() {
    void* memory =
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) begin = static_cast<char*>(memory);
  }
  char* begin = nullptr;
  size_t used = 0;
};

struct Memory {
  std::mutex mutex;
  Arena arenas[2];
  std::map<uintptr_t, Allocation> allocations;
  std::deque<uintptr_t> quarantine;
  size_t quarantine_bytes = 0;
  size_t device_bytes = 0;
  size_t device_limit = kH100Bytes;
  bool others_have_allocated = false;
  bool guard = false;
  std::mutex access_mutex;
  int num_accesses = 0;
};

Memory& memory() {
  static Memory* made = [] {
    auto* m = new Memory;
    m->guard = environment_number("LOCKSTEP_EMULATION_GUARD", 0) != 0;
    const int64_t limit_mb = environment_number("LOCKSTEP_EMULATION_MEMORY_MB", 0);
    if (limit_mb > 0) m->device_limit = static_cast<size_t>(limit_mb) << 20;
    return m;
  }();
  return *made;
}

uintptr_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }
char* pointer(uintptr_t address) { return reinterpret_cast<char*>(address); }

// Tells AddressSanitizer what may be touched; it then watches the red zones for us.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
void allow(const void* begin, size_t size) { __asan_unpoison_memory_region(begin, size); }
void forbid(const void* begin, size_t size) { __asan_poison_memory_region(begin, size); }
#else
constexpr bool kAddressSanitizer = false;
void allow(const void*, size_t) {}
void forbid(const void*, size_t) {}
#endif

void poison(uintptr_t address, const Allocation& a) {
  const DeviceAccess access;
  char* begin = pointer(address - kRedZone);
  allow(begin, a.span);
  std::memset(begin, kPoison, a.span);
  forbid(begin, a.span);
  if (a.state == State::live) allow(pointer(address), a.size);
}

// The allocation, live or not, in or just behind which address lies. With the mutex held.
std::map<uintptr_t, Allocation>::iterator find(const void* address) {
  auto& all = memory().allocations;
  auto next = all.upper_bound(number(address));
  if (next == all.begin()) return all.end();
  --next;
  return number(address) <= next->first + next->second.size ? next : all.end();
}

// Of `size` bytes from begin on, the first that is no poison; `size` where all are.
size_t first_written(const char* begin, size_t size) {
  for (size_t i = 0; i < size; i++) {
    if (static_cast<unsigned char>(begin[i]) != kPoison) return i;
  }
  return size;
}

// What was written in the `zone` bytes before or after the allocation, or "".
std::string red_zone_damage(uintptr_t address, const Allocation& a, size_t zone) {
  if (kAddressSanitizer || a.kind == MemoryKind::registered) return {};
  const DeviceAccess access;
  const size_t behind = std::min(zone, a.span - kRedZone - a.size);
  const size_t after = first_written(pointer(address + a.size), behind);
  const size_t before = first_written(pointer(address - kRedZone), kRedZone);
  if (after == behind && before == kRedZone) return {};
  const std::string size = std::to_string(a.size);
  if (after < behind) {
    return "wrote past the end of " + size + " bytes, at +" + std::to_string(after);
  }
  return "wrote before the begin of " + size + " bytes, at -" + std::to_string(kRedZone - before);
}

// Lets the oldest freed memory go for good.
void shrink_quarantine() {
  Memory& m = memory();
  while (m.quarantine_bytes > kQuarantineBytes && !m.guard) {
    const auto oldest = m.allocations.find(m.quarantine.front());
    m.quarantine.pop_front();
    const Allocation& a = oldest->second;
    m.quarantine_bytes -= a.span;
    allow(pointer(oldest->first - kRedZone), a.span);
    mmap(pointer(oldest->first - kRedZone), a.span, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    m.allocations.erase(oldest);
  }
}

void free_now(std::map<uintptr_t, Allocation>::iterator at) {
  Memory& m = memory();
  Allocation& a = at->second;
  const std::string damage = red_zone_damage(at->first, a, a.span);
  if (!damage.empty()) report(cudaErrorIllegalAddress, "freed memory: something " + damage);
  if (a.holders > 0) report(cudaErrorInvalidValue, "freed memory is registered with NCCL");
  a.state = State::freed;
  poison(at->first, a);
  if (a.kind == MemoryKind::device) m.device_bytes -= a.size;
  m.quarantine.push_back(at->first);
  m.quarantine_bytes += a.span;
  shrink_quarantine();
}

}  // namespace

DeviceAccess::DeviceAccess() {
  Memory& m = memory();
  if (!m.guard) return;
  const std::lock_guard lock(m.access_mutex);
  const Arena& arena = m.arenas[static_cast<int>(MemoryKind::device)];
  if (m.num_accesses++ == 0) mprotect(arena.begin, arena.used, PROT_READ | PROT_WRITE);
}

DeviceAccess::~DeviceAccess() {
  Memory& m = memory();
  if (!m.guard) return;
  const std::lock_guard lock(m.access_mutex);
  const Arena& arena = m.arenas[static_cast<int>(MemoryKind::device)];
  if (--m.num_accesses == 0) mprotect(arena.begin, arena.used, PROT_NONE);
}

MemoryInfo memory_info(const void* address) {
  const std::lock_guard lock(memory().mutex);
  const auto at = find(address);
  if (at == memory().allocations.end()) return {};
  return {true, at->second.kind};
}

void* allocate(size_t size, MemoryKind kind, bool live) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  Arena& arena = m.arenas[static_cast<int>(kind)];
  if (kind == MemoryKind::device && size > m.device_limit - m.device_bytes) return nullptr;
  const size_t span = (size + 2 * kRedZone + kPage - 1) / kPage * kPage;
  if (arena.begin == nullptr || span > kArenaBytes - arena.used) return nullptr;
  char* begin = arena.begin + arena.used;
  {
    const std::lock_guard access_lock(m.access_mutex);
    if (mprotect(begin, span, PROT_READ | PROT_WRITE) != 0) return nullptr;
    arena.used += span;
  }
  const uintptr_t address = number(begin) + kRedZone;
  const Allocation a{size, kind, live ? State::live : State::pending, span};
  m.allocations.emplace(address, a);
  if (kind == MemoryKind::device) m.device_bytes += size;
  poison(address, a);
  return pointer(address);
}

void make_live(void* address) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  Allocation& a = m.allocations.at(number(address));
  a.state = State::live;
  poison(number(address), a);
}

namespace {

bool release(void* address, MemoryKind kind, bool of_nccl) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const auto at = m.allocations.find(number(address));
  if (at == m.allocations.end() || at->second.state != State::live || at->second.kind != kind ||
      at->second.of_nccl != of_nccl) {
    return false;
  }
  if (kind == MemoryKind::registered) {
    m.allocations.erase(at);
  } else {
    free_now(at);
  }
  return true;
}

}  // namespace

bool release(void* address, MemoryKind kind) { return release(address, kind, false); }

void* allocate_for_nccl(size_t size) {
  void* address = allocate(size, MemoryKind::device);
  const std::lock_guard lock(memory().mutex);
  if (address != nullptr) memory().allocations.at(number(address)).of_nccl = true;
  return address;
}
bool release_for_nccl(void* address) { return release(address, MemoryKind::device, true); }

bool hold(const void* begin, size_t size) {
  const std::lock_guard lock(memory().mutex);
  const auto at = find(begin);
  if (at == memory().allocations.end() || at->second.state != State::live ||
      at->second.kind != MemoryKind::device || number(begin) + size > at->first + at->second.size) {
    return false;
  }
  at->second.holders++;
  return true;
}

void let_go(const void* begin) {
  const std::lock_guard lock(memory().mutex);
  const auto at = find(begin);
  if (at != memory().allocations.end()) at->second.holders--;
}

void register_memory(void* address, size_t size) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  m.allocations[number(address)] = {size, MemoryKind::registered, State::live, size};
}

size_t device_memory_used() {
  const std::lock_guard lock(memory().mutex);
  return memory().device_bytes;
}
size_t device_memory_total() { return memory().device_limit; }

void let_another_program_allocate() {
  const auto taken_mb = environment_number("LOCKSTEP_EMULATION_MEMORY_TAKEN_MB", 0);
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  if (std::exchange(m.others_have_allocated, true)) return;
  m.device_bytes += std::min(static_cast<size_t>(taken_mb) << 20, m.device_limit - m.device_bytes);
}

bool check_range(const void* begin, size_t size, const char* user) {
  Memory& m = memory();
  std::string what;
  {
    const std::lock_guard lock(m.mutex);
    const auto at = find(begin);
    if (at == m.allocations.end()) {
      what = " is outside every allocation";
    } else if (at->second.state == State::freed) {
      what = " is in freed memory";
    } else if (at->second.state == State::pending) {
      what = " is in memory that is not allocated yet";
    } else if (number(begin) + size > at->first + at->second.size) {
      what = ", " + std::to_string(size) + " bytes, goes past the end of its allocation";
    } else {
      return true;
    }
  }
  char text[32];
  std::snprintf(text, sizeof(text), "%p", begin);
  report(cudaErrorIllegalAddress, std::string(user) + ": " + text + what);
  return false;
}

bool check_pointer(const void* address, const char* user) {
  return address == nullptr || check_range(address, 0, user);
}

bool check_red_zones(const void* address, const char* user) {
  Memory& m = memory();
  std::string damage;
  {
    const std::lock_guard lock(m.mutex);
    const auto at = find(address);
    if (at == m.allocations.end() || at->second.state != State::live) return true;
    damage = red_zone_damage(at->first, at->second, kRedZone);
  }
  if (damage.empty()) return true;
  report(cudaErrorIllegalAddress, std::string(user) + " " + damage);
  return false;
}

bool check_all_red_zones() {
  Memory& m = memory();
  std::string damage;
  {
    const std::lock_guard lock(m.mutex);
    for (const auto& [address, a] : m.allocations) {
      if (a.state == State::live && damage.empty()) damage = red_zone_damage(address, a, kRedZone);
    }
  }
  if (damage.empty()) return true;
  report(cudaErrorIllegalAddress, "the device " + damage);
  return false;
}

std::string memory_leaks() {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  std::string all;
  for (const auto& [kind, kind_name] : {std::pair{MemoryKind::device, "of device memory"},
                                        {MemoryKind::pinned, "of pinned memory"},
                                        {MemoryKind::registered, "of registered memory"}}) {
    size_t count = 0, bytes = 0;
    for (const auto& [address, a] : m.allocations) {
      if (a.kind != kind || a.state == State::freed) continue;
      count++;
      bytes += a.size;
    }
    if (count == 0) continue;
    all += "  " + std::to_string(count) + " allocations " + kind_name + ", " +
           std::to_string(bytes) + " bytes\n";
  }
  return all;
}

void free_all_device_memory() {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  std::vector<uintptr_t> live;
  for (const auto& [address, a] : m.allocations) {
    if (a.kind == MemoryKind::device && a.state != State::freed) live.push_back(address);
  }
  for (const uintptr_t address : live) free_now(m.allocations.find(address));
}

}  // namespace cuda_emulation
