#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "core/device.h"

// Where time goes: what threads and streams of this process did, from when to when. Code says what
// it does by a ProfileScope, which costs a load and a branch while no Profile is there.
namespace lockstep {

struct Span {
  // wait: for anything but other threads in the midst of a kernel; that is idle, and a part of the
  // kernel's time. enqueue: the call that gave work to a GPU's stream.
  enum class Kind : uint8_t { stage, work, wait, idle, enqueue };
  Kind kind = Kind::stage;
  Work work;                         // its name is the span's; the rest where kind is work
  int64_t number = -1;               // which layer or step a stage is; -1: it has none
  int64_t begin_ns = 0, end_ns = 0;  // since the profile began
  int64_t parent = -1;               // the span of the same track that it is within
};

// What one thread or one stream did, by begin. Spans of a thread nest.
struct Track {
  std::string name;
  // The one that a step takes as long as: the thread that made the Profile or, on a GPU, the
  // stream.
  bool computes = false;
  std::vector<Span> spans;
};

namespace detail {
struct ThreadTrack;
}

// Records from its construction to finish() or its end, which come while no thread is within a
// scope. One at a time.
class Profile {
 public:
  // stream: in which the calling thread enqueues the step; nothing is under way in it.
  explicit Profile(Stream& stream);
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  // Ends it. On a GPU, waits for what was recorded. Work that a thread enqueued is there twice: the
  // call in the thread's track, the work itself in its stream's.
  std::vector<Track> finish();

  static bool active() {
    return __builtin_expect(current_.load(std::memory_order_relaxed) != nullptr, false);
  }

 private:
  friend class ProfileScope;
  detail::ThreadTrack& track_of_this_thread();
  void* take_timer();  // a cudaEvent_t
  std::vector<Track> stream_tracks() const;

  static inline std::atomic<Profile*> current_{nullptr};

  const uint64_t id_;  // no other profile's
  const int64_t origin_ns_;
  void* const stream_;      // a cudaStream_t; null on the CPU
  void* origin_ = nullptr;  // its timer
  std::mutex mutex_;        // guards what follows
  std::vector<void*> timers_;
  std::vector<std::shared_ptr<detail::ThreadTrack>> threads_;
};

// The calling thread does this until the scope ends.
class ProfileScope {
 public:
  // A part of the step, or a wait. `name` is of static life.
  ProfileScope(Span::Kind kind, std::string_view name, int64_t number = -1) {
    if (Profile::active()) begin(kind, {.name = name}, number, nullptr);
  }
  // A kernel, copy or collective operation of the CPU.
  explicit ProfileScope(const Work& work) {
    if (Profile::active()) begin(Span::Kind::work, work, -1, nullptr);
  }
  // What it enqueues meanwhile in a GPU's stream, which is not captured.
  ProfileScope(const Work& work, const Stream& stream) {
    if (Profile::active()) begin(Span::Kind::work, work, -1, stream.native());
  }
  ~ProfileScope() {
    if (__builtin_expect(track_ != nullptr, false)) end();
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  void begin(Span::Kind kind, const Work& work, int64_t number, void* stream);
  void end() noexcept;

  detail::ThreadTrack* track_ = nullptr;  // null: nothing is recorded
  int64_t span_ = 0;                      // its place there
};

// What the calling thread's track is called. `name` is of static life.
void name_profile_thread(std::string_view name);

}  // namespace lockstep
