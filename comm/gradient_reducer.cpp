#include "comm/gradient_reducer.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace lockstep {

class GradientReducer::Implementation {
 public:
  Implementation(Communicator& communicator, const Tensor& gradients,
                 std::vector<std::pair<int64_t, int64_t>> group_ranges, int64_t bucket_bytes)
      : gradients_(gradients.reshape({gradients.size()})), group_ranges_(std::move(group_ranges)) {
    CHECK(gradients.dtype() == DType::fp32, "gradients are added up in fp32");
    CHECK(!group_ranges_.empty() && group_ranges_.front().first == 0 &&
          group_ranges_.back().second == gradients_.size());
    if (communicator.size() == 1) return;
    for (int64_t end = gradients_.size(), count = bucket_bytes / size_bytes(DType::fp32); end > 0;
         end -= count) {
      buckets_.push_back(gradients_.slice(std::max<int64_t>(0, end - count), end));
    }
    communicator_ = communicator.duplicate();
    thread_ = std::thread([this] { work(); });
  }

  ~Implementation() {
    if (!thread_.joinable()) return;
    {
      std::lock_guard lock(mutex_);
      // A step that failed half-way: the peers may never come.
      if (complete_from_ != -1 || ready_ != 0) communicator_->cancel();
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void layer_ready(int group) {
    CHECK(group >= 0 && group < static_cast<int>(group_ranges_.size()));
    CHECK(group_ranges_[static_cast<size_t>(group)].second == complete_from(), "group {}", group);
    complete_from_ = group_ranges_[static_cast<size_t>(group)].first;
    const float* begin = gradients_.as<float>() + complete_from_;
    std::lock_guard lock(mutex_);
    while (ready_ < buckets_.size() && buckets_[ready_].as<float>() >= begin) ready_++;
    changed_.notify_all();
  }

  GradientSlice finish() {
    CHECK(complete_from_ == 0, "backward has not completed every group");
    complete_from_ = -1;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reduced_ == buckets_.size() || error_; });
    if (error_) std::rethrow_exception(error_);
    ready_ = reduced_ = 0;
    return {0, gradients_.size(), gradients_};
  }

  int64_t num_buckets() const { return static_cast<int64_t>(buckets_.size()); }

 private:
  // First parameter whose gradient this step has completed.
  int64_t complete_from() const { return complete_from_ < 0 ? gradients_.size() : complete_from_; }

  void work() {
    Stream stream;
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || reduced_ < ready_; });
      if (stopping_) return;
      const Tensor& bucket = buckets_[reduced_];
      lock.unlock();
      std::exception_ptr error;
      try {
        communicator_->all_reduce(bucket, ReduceOp::sum, stream);
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

  Tensor gradients_;
  std::vector<std::pair<int64_t, int64_t>> group_ranges_;
  std::vector<Tensor> buckets_;  // in the order that backward completes them
  int64_t complete_from_ = -1;   // -1: nothing yet

  std::unique_ptr<Communicator> communicator_;
  std::thread thread_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  size_t ready_ = 0, reduced_ = 0;  // buckets
  std::exception_ptr error_;
  bool stopping_ = false;
};

GradientReducer::GradientReducer(Communicator& communicator, const Tensor& gradients,
                                 std::vector<std::pair<int64_t, int64_t>> group_ranges,
                                 int64_t bucket_bytes)
    : implementation_(std::make_unique<Implementation>(communicator, gradients,
                                                       std::move(group_ranges), bucket_bytes)) {}

GradientReducer::~GradientReducer() = default;

void GradientReducer::layer_ready(int group) { implementation_->layer_ready(group); }

GradientSlice GradientReducer::finish() { return implementation_->finish(); }

int64_t GradientReducer::num_buckets() const { return implementation_->num_buckets(); }

}  // namespace lockstep
