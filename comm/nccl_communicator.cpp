#include "comm/nccl_communicator.h"

#include <nccl.h>  // and what it needs of CUDA

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "core/check.h"
#include "core/device.h"
#include "core/profile.h"

namespace lockstep {
namespace {

using Clock = std::chrono::steady_clock;

void check_nccl(ncclResult_t code, std::string_view operation) {
  if (code == ncclSuccess || code == ncclInProgress) return;
  throw DeviceError("NCCL failed in {}: {}", operation, ncclGetErrorString(code));
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::fp16:
      return ncclFloat16;
    case DType::int32:
      return ncclInt32;
  }
  CHECK(false);
}

ncclRedOp_t nccl_op(ReduceOp op) {
  return op == ReduceOp::sum ? ncclSum : op == ReduceOp::max ? ncclMax : ncclMin;
}

// 128 bytes of an id as text, for the host's broadcast.
std::string shared_id(Communicator& host) {
  ncclUniqueId id{};
  std::string text, failure;
  if (host.rank() == 0) {
    const ncclResult_t code = ncclGetUniqueId(&id);
    if (code != ncclSuccess) failure = ncclGetErrorString(code);
    text = failure.empty() ? std::string(id.internal, sizeof id.internal) : "!" + failure;
  }
  host.set_purpose("of NCCL's id");
  host.broadcast(text, 0);
  if (text.size() != sizeof id.internal) {
    throw DeviceError("NCCL cannot start: {}", text.substr(1));
  }
  return text;
}

// While this lives, communicators that NCCL begins have this algorithm. There is no other way:
// ncclConfig_t has no such field (2.28, nor does 2.19), and a tuner plugin is a library of its own
// that can only prefer. NCCL keeps most of its variables for the life of a process, but NCCL_ALGO
// it reads anew for every communicator, when that is tuned (ncclTopoTuneModel): in a thread of its
// own where the start does not block, so this must live until the communicator is ready. Not while
// a thread of ours may read the environment.
class ChosenAlgorithm {
 public:
  explicit ChosenAlgorithm(const std::string& algorithm) : chosen_(!algorithm.empty()) {
    if (!chosen_) return;
    const char* before = std::getenv(kVariable);
    if (before != nullptr) before_ = before;
    setenv(kVariable, algorithm.c_str(), 1);
  }
  ~ChosenAlgorithm() {
    if (!chosen_) return;
    if (before_) {
      setenv(kVariable, before_->c_str(), 1);
    } else {
      unsetenv(kVariable);
    }
  }
  ChosenAlgorithm(const ChosenAlgorithm&) = delete;
  ChosenAlgorithm& operator=(const ChosenAlgorithm&) = delete;

 private:
  static constexpr const char* kVariable = "NCCL_ALGO";
  const bool chosen_;
  std::optional<std::string> before_;
};

}  // namespace

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(Communicator& host, double deadline_s, std::string algorithm)
      : host_(host),
        watch_(host.duplicate()),
        algorithm_(std::move(algorithm)),
        deadline_s_(deadline_s) {
    if (size() == 1) return;
    try {
      start(shared_id(host));
    } catch (...) {
      abort();
      throw;
    }
    watcher_ = std::thread([this, device = cuda_device()] {
      try {
        set_cuda_device(device);  // or else asking for events would wake another GPU
        watch();
      } catch (const std::exception& error) {
        fail(error.what());
        abort();
      }
    });
  }

  ~NcclCommunicator() override {
    if (!watcher_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    watcher_.join();
    // Freeing is collective: after a failure the peers may never come to it.
    try {
      if (std::uncaught_exceptions() > 0) throw DeviceError("leaving with an error");
      check_nccl(ncclCommFinalize(communicator_), "ending");
      settle("ending NCCL");
      ncclCommDestroy(communicator_);
    } catch (const std::exception&) {
      abort();
    }
  }

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }

  void all_reduce(const Tensor& data, ReduceOp op, Stream& stream) override {
    CHECK(data.dtype() == DType::fp32 || data.dtype() == DType::int32,
          "{} is not summed between workers: widen it to fp32 first", name(data.dtype()));
    enqueue(collective_work("all_reduce", data.size_bytes(), size()), data, stream,
            [&](cudaStream_t native) {
              return ncclAllReduce(data.data(), data.data(), count(data), nccl_type(data.dtype()),
                                   nccl_op(op), communicator_, native);
            });
  }

  void all_gather(const Tensor& data, Stream& stream) override {
    CHECK(data.size() % size() == 0, "{} elements among {} workers", data.size(), size());
    const int64_t bytes = data.size_bytes() / size();
    enqueue(collective_work("all_gather", data.size_bytes(), size()), data, stream,
            [&](cudaStream_t native) {
              return ncclAllGather(static_cast<char*>(data.data()) + rank() * bytes, data.data(),
                                   count(data) / static_cast<size_t>(size()),
                                   nccl_type(data.dtype()), communicator_, native);
            });
  }

  void reduce_scatter(const Tensor& out, const Tensor& data, Stream& stream) override {
    CHECK(data.size() == out.size() * size() && data.dtype() == out.dtype(),
          "{} elements to {} workers with {} each", data.size(), size(), out.size());
    if (size() == 1) return copy(out, data.reshape(out.shape()), stream);
    enqueue(collective_work("reduce_scatter", data.size_bytes(), size()), data, stream,
            [&](cudaStream_t native) {
              return ncclReduceScatter(data.data(), out.data(), count(out), nccl_type(data.dtype()),
                                       ncclSum, communicator_, native);
            });
  }

  // Grouped sends and receives: NCCL runs them as one operation.
  void all_to_all(const Tensor& out, const Tensor& data, Stream& stream) override {
    CHECK(data.size_bytes() == out.size_bytes() && data.size() % size() == 0,
          "{} elements among {} workers", data.size(), size());
    if (size() == 1) return copy(out, data.reshape(out.shape()), stream);
    const size_t each = count(data) / static_cast<size_t>(size());
    const size_t bytes = each * static_cast<size_t>(size_bytes(data.dtype()));
    const ncclDataType_t type = nccl_type(data.dtype());
    enqueue(collective_work("all_to_all", data.size_bytes(), size()), data, stream,
            [&](cudaStream_t native) {
              ncclResult_t first_failure = ncclGroupStart();
              const auto keep = [&](ncclResult_t code) {
                if (first_failure == ncclSuccess) first_failure = code;
              };
              for (int peer = 0; peer < size(); peer++) {
                const size_t place = static_cast<size_t>(peer) * bytes;
                keep(ncclSend(static_cast<const char*>(data.data()) + place, each, type, peer,
                              communicator_, native));
                keep(ncclRecv(static_cast<char*>(out.data()) + place, each, type, peer,
                              communicator_, native));
              }
              keep(ncclGroupEnd());
              return first_failure;
            });
  }

  void broadcast(const Tensor& data, int root, Stream& stream) override {
    enqueue(broadcast_work(data.size_bytes(), size()), data, stream, [&](cudaStream_t native) {
      return ncclBroadcast(data.data(), data.data(), count(data), nccl_type(data.dtype()), root,
                           communicator_, native);
    });
  }

  void all_reduce(double* values, int64_t count, ReduceOp op) override {
    working_host().all_reduce(values, count, op);
  }
  void broadcast(std::string& text, int root) override { working_host().broadcast(text, root); }
  std::vector<std::string> gather(const std::string& text) override {
    return working_host().gather(text);
  }
  void barrier() override { working_host().barrier(); }

  // NCCL demands that all workers' buffers of an operation are registered, or none.
  Registration register_memory(const Tensor& data) override {
    if (size() == 1 || data.empty()) return nullptr;
    void* handle = nullptr;
    {
      const std::lock_guard lock(nccl_mutex_);
      if (communicator_ == nullptr ||
          ncclCommRegister(communicator_, data.data(), static_cast<size_t>(data.size_bytes()),
                           &handle) != ncclSuccess) {
        handle = nullptr;
      }
    }
    Registration mine(handle, [this](void* registered) { deregister(registered); });
    double registered = handle != nullptr ? 1 : 0;
    all_reduce(&registered, 1, ReduceOp::min);
    return registered == 1 ? mine : nullptr;
  }

  std::unique_ptr<Communicator> duplicate() override {
    throw_if_failed();
    return std::make_unique<NcclCommunicator>(host_, deadline_s_, algorithm_);
  }
  void set_purpose(const std::string& purpose) override { purpose_ = purpose; }
  void set_deadline(double seconds) override {
    const std::lock_guard lock(mutex_);
    deadline_s_ = seconds;
    host_.set_deadline(seconds);
  }
  void launched(const std::string& what, Stream& stream) override {
    throw_if_failed();
    if (size() > 1) watch_for(what, stream);
  }
  void check() override {
    throw_if_failed();
    if (size() > 1) settle("what was enqueued");
  }
  void cancel() override {
    fail(
        fmt::format("an operation {} was cancelled: another part of this worker failed", purpose_));
  }

 private:
  struct Pending {
    std::string what;  // "all-to-all of gradients, bucket 3 of 9"
    Event done;
    Clock::time_point since;
  };

  static size_t count(const Tensor& data) { return static_cast<size_t>(data.size()); }

  void start(const std::string& id_text) {
    ncclUniqueId id;
    std::memcpy(id.internal, id_text.data(), sizeof id.internal);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // no call waits within NCCL, so that a deadline can end every wait
    const ChosenAlgorithm chosen(algorithm_);
    ncclComm_t communicator = nullptr;
    check_nccl(ncclCommInitRankConfig(&communicator, size(), id, rank(), &config), "starting");
    communicator_ = communicator;
    settle("starting NCCL");
  }

  // Whoever aborts a communicator has ended its registrations, too.
  void deregister(void* handle) {
    const std::lock_guard lock(nccl_mutex_);
    if (handle != nullptr && communicator_ != nullptr) ncclCommDeregister(communicator_, handle);
  }

  // Until a call that NCCL has only begun is complete.
  void settle(const std::string& what) {
    const auto start = Clock::now();
    ncclResult_t state = ncclInProgress;
    while (true) {
      throw_if_failed();
      check_nccl(asynchronous_state(state), what);
      if (state != ncclInProgress) break;
      const std::chrono::duration<double> waited = Clock::now() - start;
      if (waited.count() > deadline_s_) {
        fail(fmt::format("{} took longer than {:.1f} s; {}", what, deadline_s_, absent_workers()));
        throw_if_failed();
      }
      if (waited.count() > 1e-3) std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    check_nccl(state, what);
  }

  template <class Call>
  void enqueue(const Work& work, const Tensor& data, Stream& stream, const Call& call) {
    throw_if_failed();
    CHECK(data.device() == Device::cuda && stream.device() == Device::cuda,
          "NCCL moves the memory of GPUs");
    if (size() == 1) return;
    std::string what(work.name);
    std::replace(what.begin(), what.end(), '_', '-');
    if (!purpose_.empty()) what += " " + purpose_;
    const ProfileScope scope(work, stream);
    {
      const std::lock_guard lock(nccl_mutex_);
      if (communicator_ != nullptr) {
        check_nccl(call(static_cast<cudaStream_t>(stream.native())), what);
      }
    }
    settle(what);
    if (!stream.capturing()) watch_for(what, stream);
  }

  void watch_for(const std::string& what, const Stream& stream) {
    Pending pending{what, Event(Device::cuda), Clock::now()};
    pending.done.record(stream);
    {
      const std::lock_guard lock(mutex_);
      pending_.push_back(std::move(pending));
    }
    changed_.notify_all();
  }

  // The host's communicator, unless NCCL failed: what it then says of itself is worth more than
  // that the peers do not come.
  Communicator& working_host() {
    throw_if_failed();
    host_.set_purpose(purpose_);
    return host_;
  }

  // It alone aborts NCCL while a step may be captured: NCCL then waits until graphs with operations
  // of the communicator are destroyed, which is the business of the thread that has them.
  void watch() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (!failure_.empty()) {
        lock.unlock();
        return abort();
      }
      if (pending_.empty()) {
        changed_.wait(lock, [&] { return stopping_ || !pending_.empty() || !failure_.empty(); });
        continue;
      }
      // Before the event: what ends because of an error ends, too.
      ncclResult_t state = ncclSuccess;
      asynchronous_state(state);
      const bool broken = state != ncclSuccess && state != ncclInProgress;
      if (!broken && pending_.front().done.passed()) {
        pending_.pop_front();
        if (!pending_.empty()) pending_.front().since = Clock::now();
        continue;
      }
      const std::chrono::duration<double> waited = Clock::now() - pending_.front().since;
      const bool late = waited.count() > deadline_s_;
      if (late || broken) {
        const std::string what = pending_.front().what;
        lock.unlock();
        const std::string reason =
            late ? fmt::format("was not done after {:.1f} s; {}", waited.count(), absent_workers())
                 : std::string(ncclGetErrorString(state));
        fail(fmt::format("{}: {}", what, reason));
        lock.lock();
        continue;
      }
      changed_.wait_for(lock, std::chrono::milliseconds(20),
                        [&] { return stopping_ || !failure_.empty(); });
    }
  }

  ncclResult_t asynchronous_state(ncclResult_t& state) {
    const std::lock_guard lock(nccl_mutex_);
    return communicator_ == nullptr ? ncclSuccess : ncclCommGetAsyncError(communicator_, &state);
  }

  // Who does not come to a barrier now is missing.
  std::string absent_workers() {
    const std::lock_guard lock(barrier_mutex_);
    try {
      watch_->set_purpose("after that");
      watch_->set_deadline(2);
      watch_->barrier();
    } catch (const DeviceError& error) {
      return error.what();
    }
    return "yet every worker is there: look at the network between the GPUs (NCCL_DEBUG=INFO tells "
           "more)";
  }

  // Every later call throws; the thread that watches ends NCCL's kernels.
  void fail(const std::string& message) {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_.empty()) return;
      failure_ = message;
      pending_.clear();
    }
    changed_.notify_all();
  }

  // Ends NCCL's kernels, so that streams which wait for them go on.
  void abort() {
    std::unique_lock lock(nccl_mutex_);
    const ncclComm_t mine = std::exchange(communicator_, nullptr);
    lock.unlock();  // it may take a while, and others ask for the state
    if (mine != nullptr) ncclCommAbort(mine);
  }

  void throw_if_failed() {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw DeviceError("{}", failure_);
  }

  Communicator& host_;
  std::unique_ptr<Communicator> watch_;  // for who asks who is missing
  std::mutex barrier_mutex_;             // guards it
  std::mutex nccl_mutex_;                // guards calls of NCCL, none of which waits for peers
  ncclComm_t communicator_ = nullptr;
  const std::string algorithm_;  // empty: NCCL chooses
  std::string purpose_;
  std::thread watcher_;
  std::condition_variable changed_;
  std::mutex mutex_;  // guards what follows
  double deadline_s_;
  std::deque<Pending> pending_;
  std::string failure_;
  bool stopping_ = false;
};

std::unique_ptr<Communicator> nccl_communicator(Communicator& host, double deadline_s,
                                                const std::string& algorithm) {
  return std::make_unique<NcclCommunicator>(host, deadline_s, algorithm);
}

void let_workers_share_gpus(int rank) {
  constexpr int kKeepTheUsers = 0;
  setenv("NCCL_HOSTID", fmt::format("lockstep-worker-{}", rank).c_str(), kKeepTheUsers);
}

void use_nccl_memory() {
  const auto allocate = [](int64_t size_bytes) {
    void* memory = nullptr;
    if (ncclMemAlloc(&memory, static_cast<size_t>(size_bytes)) != ncclSuccess) {
      throw OutOfGpuMemory(
          "out of device memory: {:.1f} MiB for NCCL were refused; {:.1f} are free",
          static_cast<double>(size_bytes) / 1048576,
          static_cast<double>(free_gpu_memory()) / 1048576);
    }
    return memory;
  };
  set_peer_memory({allocate, [](void* memory) { ncclMemFree(memory); }});
}

namespace {

// NCCL counts 10000 * major + 100 * minor + patch, since its version 2.9.
std::string version_text(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

int loaded_version() {  // 0: there is none
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}

}  // namespace

LibraryVersion nccl_version() {
  const int loaded = loaded_version();
  return {version_text(NCCL_VERSION_CODE), loaded == 0 ? "" : version_text(loaded)};
}

std::string nccl_obstacle() {
  constexpr int kOldest = NCCL_VERSION(2, 19, 0);  // which has ncclCommRegister
  const int loaded = loaded_version();
  if (loaded == 0) return fmt::format("no NCCL: {}", ncclGetLastError(nullptr));
  if (loaded >= kOldest) return "";
  return fmt::format("NCCL {} is too old: {} or newer is needed", version_text(loaded),
                     version_text(kOldest));
}

}  // namespace lockstep
