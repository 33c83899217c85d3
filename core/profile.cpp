#include "core/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "core/check.h"
#include "core/cuda_runtime.h"

namespace lockstep {

// A thread's own list: only it writes there.
struct detail::ThreadTrack {
  // Of the work in a GPU's stream, whose time is known later.
  struct Enqueued {
    int64_t span;
    void *stream, *begin, *end;  // a cudaStream_t, and timers
  };
  uint64_t profile = 0;
  int64_t origin_ns = 0;
  std::string name;
  bool computes = false;
  std::vector<Span> spans;
  std::vector<Enqueued> enqueued;
  int64_t open = -1;  // the innermost span
};

namespace {

using detail::ThreadTrack;

thread_local std::string_view thread_name;

int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint64_t next_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

void name_profile_thread(std::string_view name) { thread_name = name; }

Profile::Profile(Stream& stream) : id_(next_id()), origin_ns_(now_ns()), stream_(stream.native()) {
  CHECK(current_ == nullptr, "a profile within another");
  if constexpr (kCudaIsBuilt) {
    if (stream_ != nullptr) {
      origin_ = take_timer();
      cuda::record_event(origin_, stream_);
      stream.synchronize();
    }
  }
  track_of_this_thread().computes = stream_ == nullptr;
  current_ = this;
}

Profile::~Profile() {
  if (current_ == this) current_ = nullptr;
  if constexpr (kCudaIsBuilt) {
    for (void* timer : timers_) cuda::destroy_event(timer);
  }
}

void* Profile::take_timer() {
  void* timer = nullptr;
  if constexpr (kCudaIsBuilt) timer = cuda::create_timer();
  const std::lock_guard lock(mutex_);
  return timers_.emplace_back(timer);
}

ThreadTrack& Profile::track_of_this_thread() {
  static thread_local std::shared_ptr<ThreadTrack> mine;
  if (mine == nullptr || mine->profile != id_) {
    constexpr size_t kUsualSpans = 1 << 14;
    mine = std::make_shared<ThreadTrack>();
    mine->profile = id_;
    mine->origin_ns = origin_ns_;
    mine->spans.reserve(kUsualSpans);
    const std::lock_guard lock(mutex_);
    threads_.push_back(mine);
    mine->name = !thread_name.empty()   ? std::string(thread_name)
                 : threads_.size() == 1 ? "training"
                                        : fmt::format("thread {}", threads_.size());
  }
  return *mine;
}

std::vector<Track> Profile::stream_tracks() const {
  std::map<void*, Track> by_stream;
  by_stream[stream_] = {"compute stream", true, {}};
  if constexpr (kCudaIsBuilt) {
    for (const auto& thread : threads_) {
      for (const auto& [span, stream, begin, end] : thread->enqueued) {
        Track& track = by_stream[stream];
        if (track.name.empty()) track.name = fmt::format("stream {}", by_stream.size());
        Span done = thread->spans[static_cast<size_t>(span)];
        cuda::synchronize_event(end);
        done.begin_ns = cuda::elapsed_ns(origin_, begin);
        done.end_ns = done.begin_ns + cuda::elapsed_ns(begin, end);
        done.parent = -1;
        track.spans.push_back(done);
      }
    }
  }
  std::vector<Track> tracks;
  for (auto& [stream, track] : by_stream) {
    std::stable_sort(track.spans.begin(), track.spans.end(),
                     [](const Span& a, const Span& b) { return a.begin_ns < b.begin_ns; });
    tracks.push_back(std::move(track));
  }
  return tracks;
}

std::vector<Track> Profile::finish() {
  CHECK(current_ == this, "the profile has ended");
  current_ = nullptr;
  std::vector<Track> tracks;
  if (stream_ != nullptr) tracks = stream_tracks();
  for (const auto& thread : threads_) {
    for (const auto& enqueued : thread->enqueued) {
      thread->spans[static_cast<size_t>(enqueued.span)].kind = Span::Kind::enqueue;
    }
    tracks.push_back({thread->name, thread->computes, std::move(thread->spans)});
  }
  return tracks;
}

void ProfileScope::begin(Span::Kind kind, const Work& work, int64_t number, void* stream) {
  Profile* profile = Profile::current_.load(std::memory_order_acquire);
  if (profile == nullptr) return;
  track_ = &profile->track_of_this_thread();
  span_ = static_cast<int64_t>(track_->spans.size());
  if constexpr (kCudaIsBuilt) {
    if (stream != nullptr) {
      void* const begun = profile->take_timer();
      track_->enqueued.push_back({span_, stream, begun, profile->take_timer()});
      cuda::record_event(begun, stream);
    }
  } else {
    CHECK(stream == nullptr);
  }
  track_->spans.push_back({.kind = kind,
                           .work = work,
                           .number = number,
                           .begin_ns = now_ns() - track_->origin_ns,
                           .parent = track_->open});
  track_->open = span_;
}

void ProfileScope::end() noexcept {
  Span& span = track_->spans[static_cast<size_t>(span_)];
  span.end_ns = now_ns() - track_->origin_ns;
  track_->open = span.parent;
  if constexpr (kCudaIsBuilt) {
    // Work does not nest in a stream: this is the last that was enqueued.
    if (!track_->enqueued.empty() && track_->enqueued.back().span == span_) {
      const auto& enqueued = track_->enqueued.back();
      cuda::mark_time(enqueued.end, enqueued.stream);
    }
  }
}

}  // namespace lockstep
