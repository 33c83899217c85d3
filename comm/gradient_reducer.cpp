#include "comm/gradient_reducer.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "comm/ordered_reduction.h"
#include "core/check.h"
#include "core/profile.h"

namespace lockstep {

class GradientReducer::Implementation {
 public:
  Implementation(Communicator& communicator, Stream& stream, const Tensor& gradients,
                 const Sharding& sharding, std::vector<Range> group_ranges, DType dtype)
      : gradients_(gradients),
        sharding_(sharding),
        group_ranges_(std::move(group_ranges)),
        communicator_(communicator.duplicate()),
        backward_stream_(stream),
        stream_(stream.device()),
        complete_(stream.device()),
        joined_(stream.device()) {
    CHECK(gradients.dtype() == DType::fp32, "gradients are added up in fp32");
    CHECK(gradients.size() == sharding.padded_size());
    CHECK(!group_ranges_.empty() && group_ranges_.front().begin == 0 &&
          group_ranges_.back().end == sharding.parameters());
    if (sharding.replicated()) {
      CHECK(sharding.virtual_workers() == sharding.workers() && dtype == DType::fp32);
    } else {
      ordered_.emplace(sharding, gradients, dtype);
      for (const Tensor& buffer : ordered_->buffers()) {
        registered_.push_back(communicator_->register_memory(buffer));
      }
    }
    registered_.push_back(communicator_->register_memory(gradients));
    if (sharding.workers() > 1 && stream.device() == Device::cpu) {
      thread_ = std::thread([this] { work(); });
    }
  }

  ~Implementation() {
    {
      std::lock_guard lock(mutex_);
      // A step that failed half-way: the peers may never come.
      const bool half_way = complete_from_ != -1 || ready_ != 0;
      if (half_way) communicator_->cancel();
      stopping_ = true;
    }
    if (!thread_.joinable()) return;
    changed_.notify_all();
    thread_.join();
  }

  void layer_ready(int group) {
    CHECK(group >= 0 && group < static_cast<int>(group_ranges_.size()));
    const Range range = group_ranges_[static_cast<size_t>(group)];
    CHECK(range.end == complete_from(), "group {}", group);
    complete_from_ = range.begin;
    if (virtual_workers_done_ + 1 < sharding_.virtual_workers_each()) {
      if (complete_from_ == 0) finish_virtual_worker();
      return;
    }
    if (!thread_.joinable()) return enqueue_complete_buckets();
    std::lock_guard lock(mutex_);
    while (ready_ < sharding_.num_buckets() && sharding_.bucket(ready_).begin >= complete_from_) {
      ready_++;
    }
    changed_.notify_all();
  }

  void finish() {
    CHECK(complete_from_ == 0, "backward has not completed every group");
    if (thread_.joinable()) {
      const ProfileScope scope(Span::Kind::wait, "wait_for_reduction");
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return reduced_ == sharding_.num_buckets() || error_; });
      if (error_) std::rethrow_exception(error_);
    } else {
      joined_.record(stream_);
      backward_stream_.wait(joined_);
    }
    complete_from_ = -1;
    ready_ = reduced_ = virtual_workers_done_ = 0;
    if (ordered_) ordered_->start_over();
  }

  void launched(const std::string& what, Stream& stream) { communicator_->launched(what, stream); }

  void cancel() { communicator_->cancel(); }

  void check() { communicator_->check(); }

  int64_t memory_bytes() const { return ordered_ ? ordered_->memory_bytes() : 0; }

 private:
  // First parameter whose gradient this virtual worker has completed.
  int64_t complete_from() const {
    return complete_from_ < 0 ? sharding_.parameters() : complete_from_;
  }

  void finish_virtual_worker() {
    const ProfileScope scope(Span::Kind::stage, "keep gradients");
    ordered_->keep(backward_stream_);
    virtual_workers_done_++;
    complete_from_ = -1;
  }

  // Without a thread: the stream of reductions goes on beside that of backward.
  void enqueue_complete_buckets() {
    complete_.record(backward_stream_);
    stream_.wait(complete_);
    while (ready_ < sharding_.num_buckets() && sharding_.bucket(ready_).begin >= complete_from_) {
      reduce(ready_++, stream_);
    }
  }

  void reduce(int b, Stream& stream) {
    const ProfileScope scope(Span::Kind::stage, "bucket", b + 1);
    communicator_->set_purpose(
        fmt::format("of gradients, bucket {} of {}", b + 1, sharding_.num_buckets()));
    if (ordered_) {
      ordered_->reduce(b, *communicator_, stream);
    } else {
      const Range bucket = sharding_.bucket(b);
      communicator_->all_reduce(gradients_.slice(bucket.begin, bucket.end), ReduceOp::sum, stream);
    }
  }

  void work() {
    name_profile_thread("gradient reduction");
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || reduced_ < ready_; });
      if (stopping_) return;
      const int bucket = reduced_;
      lock.unlock();
      std::exception_ptr error;
      try {
        reduce(bucket, stream_);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error) {
        error_ = error;
      } else {
        reduced_++;
      }
      changed_.notify_all();
      if (error) return;
    }
  }

  const Tensor gradients_;
  const Sharding sharding_;
  const std::vector<Range> group_ranges_;
  std::unique_ptr<Communicator> communicator_;
  std::optional<OrderedReduction> ordered_;  // none: the library's all-reduce
  std::vector<Communicator::Registration> registered_;
  Stream& backward_stream_;  // in which gradients become complete
  Stream stream_;            // of the reductions; it ends before all that its work uses
  Event complete_, joined_;
  int64_t complete_from_ = -1;  // -1: nothing yet
  int virtual_workers_done_ = 0;

  std::thread thread_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  int ready_ = 0, reduced_ = 0;  // buckets
  std::exception_ptr error_;
  bool stopping_ = false;
};

GradientReducer::GradientReducer(Communicator& communicator, Stream& stream,
                                 const Tensor& gradients, const Sharding& sharding,
                                 std::vector<Range> group_ranges, DType dtype)
    : implementation_(std::make_unique<Implementation>(communicator, stream, gradients, sharding,
                                                       std::move(group_ranges), dtype)) {}

GradientReducer::~GradientReducer() = default;

void GradientReducer::layer_ready(int group) { implementation_->layer_ready(group); }

void GradientReducer::finish() { implementation_->finish(); }

void GradientReducer::launched(const std::string& what, Stream& stream) {
  implementation_->launched(what, stream);
}

void GradientReducer::cancel() { implementation_->cancel(); }

void GradientReducer::check() { implementation_->check(); }

int64_t GradientReducer::memory_bytes() const { return implementation_->memory_bytes(); }

}  // namespace lockstep
