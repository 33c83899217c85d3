#include "cuda_emulation/scheduler.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string_view>
#include <thread>

#include "cuda_emulation/graphs.h"
#include "cuda_emulation/memory.h"

namespace cuda_emulation {
namespace {

using Clock = std::chrono::steady_clock;

std::mutex handles_mutex;
std::map<std::string, int>& handles() {
  static auto* counts = new std::map<std::string, int>;  // outlives the destructors of statics
  return *counts;
}

// Said when the process exits, after its statics are gone.
void at_exit() {
  Scheduler& scheduler = Scheduler::instance();
  {
    auto lock = scheduler.lock();
    scheduler.stop_idle_thread(lock);
  }
  const std::string leaked = leaks();
  if (leaked.empty()) return;
  std::fprintf(stderr, "emulated device: at exit there remain\n%s", leaked.c_str());
  const char* action = std::getenv("LOCKSTEP_EMULATION_LEAKS");
  if (action != nullptr && std::string_view(action) == "fail") {
    std::fflush(nullptr);
    std::_Exit(1);
  }
}

}  // namespace

int64_t environment_number(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

uint64_t random_number() {
  Scheduler& scheduler = Scheduler::instance();
  const auto lock = scheduler.lock();
  return scheduler.random();
}

void count_handle(const char* kind, int change) {
  const std::lock_guard lock(handles_mutex);
  handles()[kind] += change;
}

std::string leaks() {
  Scheduler& scheduler = Scheduler::instance();
  std::string all = memory_leaks();
  {
    const auto lock = scheduler.lock();
    all += scheduler.leaks();
  }
  const std::lock_guard lock(handles_mutex);
  for (const auto& [kind, count] : handles()) {
    if (count != 0) all += "  " + std::to_string(count) + " " + kind + "\n";
  }
  return all;
}

cudaError_t submit(cudaStream_t stream, const char* name, MakeStep make) {
  Scheduler& scheduler = Scheduler::instance();
  auto lock = scheduler.lock();
  CUstream_st* to = scheduler.find(stream);
  if (to == nullptr) return report(cudaErrorInvalidResourceHandle, "the stream was destroyed");
  if (const cudaError_t code = sticky_error()) return code;
  if (to->capture != nullptr) {
    capture_node(*to, name, std::move(make));
    return cudaSuccess;
  }
  if (to == scheduler.legacy()) {
    if (const cudaError_t code = refuse_legacy_stream_in_capture()) return code;
  }
  scheduler.enqueue(lock, to, name, make());
  return cudaSuccess;
}

Scheduler& Scheduler::instance() {
  static Scheduler* scheduler = [] {
    auto* made = new Scheduler;
    std::atexit(at_exit);
    return made;
  }();
  return *scheduler;
}

Scheduler::Scheduler() {
  legacy_ = create_stream(true);
  idle_ = std::chrono::milliseconds(environment_number("LOCKSTEP_EMULATION_IDLE_MS", 50));
  seed_from_environment();
}

uint64_t Scheduler::Generator::operator()() {
  state += 0x9e3779b97f4a7c15u;
  uint64_t x = state;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

void Scheduler::seed_from_environment() {
  const auto seed = static_cast<uint64_t>(environment_number("LOCKSTEP_EMULATION_SEED", 0));
  const auto worker = static_cast<uint64_t>(environment_number("OMPI_COMM_WORLD_RANK", 0));
  random_.state = seed * 1000003 + worker * 7919;
  constexpr double kEagerness[] = {0, 0, 0, 0.02, 0.3, 0.9};  // mostly nothing runs by itself
  eagerness_ = kEagerness[random_() % std::size(kEagerness)];
  lazy_ = random_() % 4 == 0;
  const char* order = std::getenv("LOCKSTEP_EMULATION_ORDER");
  fixed_order_ = order != nullptr || seed == 0;
  order_ = ThreadOrder::forward;
  if (order != nullptr && std::string_view(order) == "reverse") order_ = ThreadOrder::reverse;
  if (order != nullptr && std::string_view(order) == "random") order_ = ThreadOrder::random;
}

ThreadOrder Scheduler::thread_order() {
  if (fixed_order_) return order_;
  const uint64_t draw = random_() % 4;
  return draw < 2 ? ThreadOrder::forward : draw == 2 ? ThreadOrder::reverse : ThreadOrder::random;
}

CUstream_st* Scheduler::find(cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy) return legacy_;
  return stream->destroyed ? nullptr : stream;
}

CUstream_st* Scheduler::create_stream(bool blocking) {
  CUstream_st* stream = streams_.emplace_back(std::make_unique<CUstream_st>()).get();
  stream->blocking = blocking;
  active_.push_back(stream);
  return stream;
}

CUevent_st* Scheduler::create_event() {
  return events_.emplace_back(std::make_unique<CUevent_st>()).get();
}

void Scheduler::destroy(CUstream_st* stream) {
  stream->destroyed = true;
  if (stream->queue.empty()) std::erase(active_, stream);
}

std::string Scheduler::leaks() const {
  const auto alive = [](const auto& handle) { return !handle->destroyed; };
  const auto num_streams = std::ranges::count_if(streams_, alive) - 1;  // the legacy stream stays
  const auto num_events = std::ranges::count_if(events_, alive);
  std::string all;
  if (num_streams != 0) all += "  " + std::to_string(num_streams) + " streams\n";
  if (num_events != 0) all += "  " + std::to_string(num_events) + " events\n";
  return all;
}

std::shared_ptr<Completion> Scheduler::enqueue(Lock& lock, CUstream_st* stream, const char* name,
                                               Step step, std::shared_ptr<Completion> after) {
  auto completion = std::make_shared<Completion>();
  completion->stream = stream;
  stream->queue.push_back({++num_enqueued_, name, std::move(step), std::move(after), completion});
  num_pending_++;
  touched_ = Clock::now();
  start_idle_thread();
  run_some(lock);
  return completion;
}

void Scheduler::run_some(Lock& lock) {
  while (eagerness_ > 0 && num_pending_ > 0 &&
         static_cast<double>(random_() % 1000) < eagerness_ * 1000) {
    if (!run_one(lock)) return;
  }
}

bool Scheduler::is_ready(const CUstream_st& stream) const {
  if (stream.queue.empty()) return false;
  const CUstream_st::Queued& next = stream.queue.front();
  if (next.after != nullptr && !next.after->done) return false;
  const auto comes_first = [&](const CUstream_st& other) {
    return !other.queue.empty() && other.queue.front().number < next.number;
  };
  if (&stream != legacy_) return !(stream.blocking && comes_first(*legacy_));
  return std::ranges::none_of(active_, [&](const CUstream_st* other) {
    return other != legacy_ && other->blocking && comes_first(*other);
  });
}

// By weights that are redrawn now and then, so that a stream may starve for long.
size_t Scheduler::choose(const std::vector<CUstream_st*>& streams) {
  double total = 0;
  for (CUstream_st* stream : streams) {
    if (random_() % 16 == 0) stream->weight = std::ldexp(1.0, -static_cast<int>(random_() % 12));
    total += stream->weight;
  }
  double point = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  size_t i = 0;
  while (i + 1 < streams.size() && (point -= streams[i]->weight) > 0) i++;
  return i;
}

// The stream that must run next for work in `stream` to complete; null where it is not plain.
CUstream_st* Scheduler::first_needed_by(const CUstream_st* stream) {
  constexpr int kLongestChain = 64;
  for (int i = 0; i < kLongestChain && stream != nullptr && !stream->queue.empty(); i++) {
    if (is_ready(*stream)) return const_cast<CUstream_st*>(stream);
    const auto& after = stream->queue.front().after;
    stream = after == nullptr ? nullptr : after->stream;
  }
  return nullptr;
}

bool Scheduler::run_one(Lock& lock, const CUstream_st* wanted) {
  if (step_runs_) {  // on another thread; a device runs one step at a time
    step_ended_.wait(lock, [&] { return !step_runs_; });
    return true;
  }
  std::vector<CUstream_st*> ready;
  for (CUstream_st* stream : active_) {
    if (is_ready(*stream)) ready.push_back(stream);
  }
  if (ready.empty()) return false;
  CUstream_st* stream = ready[choose(ready)];
  if (lazy_ && wanted != nullptr && random_() % 8 != 0) {
    if (CUstream_st* needed = first_needed_by(wanted)) stream = needed;
  }
  CUstream_st::Queued& next = stream->queue.front();
  bool done = true;
  if (next.step) {
    step_runs_ = true;
    lock.unlock();
    {
      const DeviceAccess access;
      done = next.step();
    }
    if (!done) std::this_thread::yield();
    lock.lock();
    step_runs_ = false;
    step_ended_.notify_all();
  }
  touched_ = Clock::now();
  if (done) {
    next.completion->done = true;
    next.completion->when = touched_;
    stream->queue.pop_front();
    num_pending_--;
    if (stream->destroyed && stream->queue.empty()) std::erase(active_, stream);
  }
  return true;
}

void Scheduler::run_until(Lock& lock, const Completion& completion) {
  while (!completion.done) {
    if (run_one(lock, completion.stream)) continue;
    std::fprintf(stderr, "emulated device: a wait for work that can never run\n");
    std::abort();
  }
}

void Scheduler::run_all(Lock& lock) {
  while (num_pending_ > 0) {
    if (run_one(lock)) continue;
    std::fprintf(stderr, "emulated device: queued work that can never run\n");
    std::abort();
  }
}

void Scheduler::reset(Lock& lock) {
  run_all(lock);
  clear_errors();
  seed_from_environment();
}

// A device makes progress while the host is busy, or blocked where only a peer can free it; so does
// this one, after a while.
void Scheduler::start_idle_thread() {
  if (idle_thread_started_ || idle_thread_stops_) return;
  idle_thread_started_ = true;
  std::thread([this] { run_while_idle(); }).detach();
}

void Scheduler::run_while_idle() {
  for (;;) {
    std::this_thread::sleep_for(idle_ / 2 + std::chrono::milliseconds(1));
    auto held = lock();
    if (idle_thread_stops_) return;
    while (num_pending_ > 0 && !step_runs_ && !idle_thread_stops_ &&
           Clock::now() - touched_ > idle_) {
      const auto before = touched_;
      if (!run_one(held)) break;
      touched_ = before;  // the host is still idle
      held.unlock();
      std::this_thread::yield();
      held.lock();
    }
  }
}

void Scheduler::stop_idle_thread(Lock& lock) {
  idle_thread_stops_ = true;
  step_ended_.wait(lock, [&] { return !step_runs_; });
}

}  // namespace cuda_emulation
