#include "core/rehearsal.h"

#include <sys/mman.h>

#include "core/check.h"

namespace lockstep {
namespace {

thread_local Rehearsal* current_rehearsal = nullptr;

}  // namespace

void WorkLog::add(const Entry& entry) {
  last_[static_cast<size_t>(entry.stream)] = static_cast<int64_t>(entries_.size());
  entries_.push_back(entry);
}

Rehearsal::Rehearsal() {
  CHECK(current_rehearsal == nullptr, "a rehearsal within another");
  current_rehearsal = this;
}

Rehearsal::~Rehearsal() { current_rehearsal = nullptr; }

Rehearsal* Rehearsal::current() { return current_rehearsal; }

void* reserve_addresses(int64_t size_bytes) {
  void* addresses = mmap(nullptr, static_cast<size_t>(size_bytes), PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (addresses == MAP_FAILED) {
    throw DeviceError("the system refuses the addresses of {:.1f} MiB",
                      static_cast<double>(size_bytes) / 1048576.0);
  }
  return addresses;
}

void release_addresses(void* addresses, int64_t size_bytes) noexcept {
  munmap(addresses, static_cast<size_t>(size_bytes));
}

}  // namespace lockstep
