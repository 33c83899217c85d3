#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <future>
#include <thread>

#include "checkpoints/binary_file.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/step_folder.h"
#include "checkpoints/verify.h"
#include "core/check.h"
#include "core/file.h"
#include "core/thread_pool.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// Left in the partial folder by a worker that could not write its shard; holds the reason.
fs::path failure_marker(const fs::path& folder, int worker) {
  return folder / fmt::format("failed-{:05}", worker);
}

// What was enqueued for `from` must have run.
void copy_in_parallel(const Tensor& to, const Tensor& from) {
  constexpr int64_t kGrain = int64_t{1} << 20;
  CHECK(from.size() == to.size());
  if (from.device() != Device::cpu) {
    Stream stream(from.device());
    copy(to, from, stream);
    return stream.synchronize();
  }
  const auto* source = from.as<float>();
  auto* target = to.as<float>();
  parallel_for(to.size(), kGrain, [&](int64_t begin, int64_t end) {
    std::copy(source + begin, source + end, target + begin);
  });
}

// The sizes of all files of a folder: it changes while anybody writes.
uint64_t bytes_in(const fs::path& folder) {
  uint64_t bytes = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code gone;
    const uint64_t size = it->file_size(gone);
    bytes += gone ? 0 : size + 1;
  }
  return bytes;
}

// Puts `folder` at `name`, atomically if the file system can: what was there before moves aside.
void rename_folder(const fs::path& folder, const fs::path& name, const fs::path& aside) {
  if (!fs::exists(name)) return rename_path(folder, name);
  if (::renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, name.c_str(), RENAME_EXCHANGE) == 0) {
    rename_path(folder, aside);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS) {
    throw DataError("cannot rename {} to {}: {}", folder.string(), name.string(),
                    std::strerror(errno));
  }
  rename_path(name, aside);
  rename_path(folder, name);
}

}  // namespace

class CheckpointWriter::Implementation {
 public:
  Implementation(fs::path run_folder, int rank, int size, int keep,
                 std::chrono::milliseconds patience)
      : run_folder_(std::move(run_folder)),
        rank_(rank),
        size_(size),
        keep_(keep),
        patience_(patience) {}

  ~Implementation() {
    // An error is on its way out: the others may never write their parts.
    if (std::uncaught_exceptions() > 0) abandoned_ = true;
    try {
      wait();
    } catch (const std::exception& error) {
      spdlog::error("the last checkpoint was not saved: {}", error.what());
    }
  }

  void prepare(int64_t step) {
    CHECK(rank_ == 0, "worker 0 prepares the folder, not {}", rank_);
    wait();
    const fs::path folder = partial_folder(run_folder_, step);
    try {
      fs::create_directories(folder.parent_path());
      for (const fs::directory_entry& entry : fs::directory_iterator(folder.parent_path())) {
        if (entry.path().filename().string().starts_with(".step-")) fs::remove_all(entry.path());
      }
      fs::create_directory(folder);
    } catch (const fs::filesystem_error& error) {
      throw DataError("cannot make a place for the checkpoint in {}: {}",
                      folder.parent_path().string(), error.code().message());
    }
  }

  void save(const CheckpointInfo& info, const std::vector<CheckpointSlice>& slices) {
    wait();
    const auto start = std::chrono::steady_clock::now();
    int64_t count = 0;
    for (const CheckpointSlice& slice : slices) count += slice.range.size();
    if (copy_.size_bytes() < 3 * count * size_bytes(DType::fp32)) {
      copy_ = Buffer(DType::fp32, {3, count});
    }
    const auto part = [&](int i) {
      return copy_.tensor(DType::fp32, {count}, i * count * size_bytes(DType::fp32));
    };
    ShardContent copied{{}, part(0), part(1), part(2)};
    for (int64_t at = 0; const CheckpointSlice& slice : slices) {
      const int64_t end = at + slice.range.size();
      copy_in_parallel(copied.weights.slice(at, end), slice.weights);
      copy_in_parallel(copied.exp_avg.slice(at, end), slice.exp_avg);
      copy_in_parallel(copied.exp_avg_sq.slice(at, end), slice.exp_avg_sq);
      copied.ranges.push_back(slice.range);
      at = end;
    }
    under_way_ = std::async(std::launch::async, [this, info, copied, start] {
      write(info, copied);
      last_seconds_ =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    });
  }

  void wait() {
    if (under_way_.valid()) under_way_.get();
  }

  bool poll() {
    if (under_way_.valid() &&
        under_way_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      return false;
    }
    wait();
    return true;
  }

  double last_seconds() const { return last_seconds_; }

 private:
  void write(const CheckpointInfo& info, const ShardContent& content) {
    const fs::path folder = partial_folder(run_folder_, info.step);
    try {
      write_own_shard(folder, info.step, content);
      if (rank_ != 0) return;
      commit(folder, info, collect_shards(folder, info.step));
      remove_oldest();
    } catch (const fs::filesystem_error& error) {
      give_up(folder);
      throw DataError("cannot save {}: {}", error.path1().string(), error.code().message());
    } catch (...) {
      give_up(folder);
      throw;
    }
  }

  void give_up(const fs::path& folder) const {
    std::error_code ignored;
    if (rank_ == 0) fs::remove_all(folder, ignored);
  }

  // Under a name of its own until it is complete, because worker 0 looks for the final one.
  void write_own_shard(const fs::path& folder, int64_t step, const ShardContent& content) {
    const fs::path path = folder / shard_name(rank_, size_);
    const fs::path unfinished = path.string() + ".unfinished";
    try {
      write_shard(unfinished, step, rank_, size_, content);
      rename_path(unfinished, path);
      flush_to_disk(folder);
    } catch (const std::exception& error) {
      std::error_code ignored;
      fs::remove(unfinished, ignored);
      if (rank_ != 0) leave_marker(folder, error.what());
      throw;
    }
  }

  // Tells worker 0. Where the disk has no room for the reason, the empty file says enough.
  void leave_marker(const fs::path& folder, const std::string& reason) const {
    const fs::path marker = failure_marker(folder, rank_);
    try {
      const fs::path unfinished = marker.string() + ".unfinished";
      OutputFile file(unfinished);
      try {
        file.append(reason);
      } catch (const DataError&) {
        file.resize(0);
      }
      rename_path(unfinished, marker);
    } catch (const DataError&) {
      // The folder is gone, because worker 0 gave up; or worker 0 will run out of patience.
    }
  }

  std::vector<Shard> collect_shards(const fs::path& folder, int64_t step) const {
    std::vector<Shard> shards;
    for (int worker = 0; worker < size_; worker++) {
      const fs::path path = folder / shard_name(worker, size_);
      wait_for(path, folder, worker);
      shards.push_back(read_shard(path, step));
    }
    return shards;
  }

  void wait_for(const fs::path& path, const fs::path& folder, int worker) const {
    using Clock = std::chrono::steady_clock;
    auto changed = Clock::now();
    uint64_t bytes = 0;
    auto pause = std::chrono::milliseconds(1);
    while (!fs::exists(path)) {
      throw_if_failed(folder);
      if (abandoned_) throw DataError("worker {} has not written {}", worker, path.string());
      if (!fs::exists(folder)) throw DataError("{} has vanished", folder.string());
      if (const uint64_t now = bytes_in(folder); now != bytes) {
        bytes = now;
        changed = Clock::now();
      } else if (Clock::now() - changed > patience_) {
        throw DataError("worker {} has not written {}, and nothing has changed for {} s", worker,
                        path.string(),
                        std::chrono::duration_cast<std::chrono::seconds>(patience_).count());
      }
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::milliseconds(200));
    }
  }

  void throw_if_failed(const fs::path& folder) const {
    for (int worker = 0; worker < size_; worker++) {
      const fs::path marker = failure_marker(folder, worker);
      if (!fs::exists(marker)) continue;
      const std::string reason = read_file(marker);
      throw DataError("worker {} could not write its part of the checkpoint: {}", worker,
                      reason.empty() ? "its disk is full, or fails" : reason);
    }
  }

  void commit(const fs::path& folder, const CheckpointInfo& info,
              const std::vector<Shard>& shards) const {
    write_index(folder / kIndexName, info, shards);
    flush_to_disk(folder);
    const StepFolder written(folder);  // what a reader would see
    for (const Shard& shard : written.shards()) written.open_shard(shard);

    const fs::path name = checkpoint_folder(run_folder_, info.step);
    const fs::path aside = fs::path(folder).replace_extension(".removed");
    rename_folder(folder, name, aside);
    flush_to_disk(name.parent_path());
    fs::remove_all(aside);
  }

  // Leaves the newest `keep_` good ones, and what is damaged for a person to look at. A folder
  // loses its name first, so that none is ever seen half removed.
  void remove_oldest() const {
    if (keep_ <= 0) return;
    std::vector<int64_t> steps = list_checkpoints(run_folder_);
    int good = 0;
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      const fs::path folder = checkpoint_folder(run_folder_, *step);
      if (!faults_of_headers(folder).empty() || ++good <= keep_) continue;
      const fs::path aside = partial_folder(run_folder_, *step).replace_extension(".removed");
      std::error_code error;
      fs::rename(folder, aside, error);
      if (!error) fs::remove_all(aside, error);
      if (error) {
        spdlog::warn("cannot remove the old checkpoint {}: {}", folder.string(), error.message());
      }
    }
  }

  const fs::path run_folder_;
  const int rank_, size_, keep_;
  const std::chrono::milliseconds patience_;
  std::atomic<bool> abandoned_{false};
  double last_seconds_ = 0;
  Buffer copy_;                  // (3, shard), kept between saves
  std::future<void> under_way_;  // declared last: it must end before what it uses does
};

CheckpointWriter::CheckpointWriter(fs::path run_folder, int rank, int size, int keep,
                                   std::chrono::milliseconds patience)
    : implementation_(
          std::make_unique<Implementation>(std::move(run_folder), rank, size, keep, patience)) {}
CheckpointWriter::~CheckpointWriter() = default;
void CheckpointWriter::prepare(int64_t step) { implementation_->prepare(step); }
void CheckpointWriter::save(const CheckpointInfo& info,
                            const std::vector<CheckpointSlice>& slices) {
  implementation_->save(info, slices);
}
void CheckpointWriter::wait() { implementation_->wait(); }
bool CheckpointWriter::poll() { return implementation_->poll(); }
double CheckpointWriter::last_seconds() const { return implementation_->last_seconds(); }

}  // namespace lockstep
