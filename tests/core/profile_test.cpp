#include "core/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/thread_pool.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using Kind = Span::Kind;

std::vector<std::string> names(const Track& track) {
  std::vector<std::string> all;
  for (const Span& span : track.spans) all.emplace_back(span.work.name);
  return all;
}

// A step of a layer with a kernel, on the calling thread.
void take_a_step(int64_t number) {
  const ProfileScope step(Kind::stage, "step", number);
  {
    const ProfileScope layer(Kind::stage, "layer", 7);
    const ProfileScope kernel(Work{"kernel", 16, 3});
  }
  const ProfileScope wait(Kind::wait, "wait");
}

TEST(Profile, SpansNestAsTheScopesDo) {
  Stream stream;
  Profile profile(stream);
  EXPECT_TRUE(Profile::active());
  take_a_step(3);
  const std::vector<Track> tracks = profile.finish();
  EXPECT_FALSE(Profile::active());
  ASSERT_EQ(tracks.size(), 1u);
  EXPECT_TRUE(tracks[0].computes);
  EXPECT_EQ(tracks[0].name, "training");
  EXPECT_THAT(names(tracks[0]), ElementsAre("step", "layer", "kernel", "wait"));
  const auto& spans = tracks[0].spans;
  const int64_t parents[] = {-1, 0, 1, 0};
  const Kind kinds[] = {Kind::stage, Kind::stage, Kind::work, Kind::wait};
  for (size_t i = 0; i < spans.size(); i++) {
    EXPECT_EQ(spans[i].parent, parents[i]);
    EXPECT_EQ(spans[i].kind, kinds[i]);
    EXPECT_LE(0, spans[i].begin_ns);
    EXPECT_LE(spans[i].begin_ns, spans[i].end_ns);
    if (parents[i] >= 0) {
      const Span& outer = spans[static_cast<size_t>(parents[i])];
      EXPECT_LE(outer.begin_ns, spans[i].begin_ns);
      EXPECT_LE(spans[i].end_ns, outer.end_ns);
    }
  }
  EXPECT_EQ(spans[0].number, 3);
  EXPECT_EQ(spans[1].number, 7);
  EXPECT_EQ(spans[2].work.bytes, 16);
  EXPECT_EQ(spans[2].work.flops, 3);
}

TEST(Profile, RecordsNothingBeforeAndAfter) {
  take_a_step(1);
  Stream stream;
  for (const int64_t number : {2, 3}) {
    Profile profile(stream);
    take_a_step(number);
    const std::vector<Track> tracks = profile.finish();
    take_a_step(4);
    ASSERT_EQ(tracks.size(), 1u);
    ASSERT_EQ(tracks[0].spans.size(), 4u);
    EXPECT_EQ(tracks[0].spans[0].number, number);
  }
}

TEST(Profile, EachThreadHasATrackOfItsOwn) {
  Stream stream;
  Profile profile(stream);
  take_a_step(1);
  std::thread([] {
    name_profile_thread("named");
    const ProfileScope there(Kind::stage, "there");
    const ProfileScope kernel(Work{"kernel", 1});
  }).join();
  std::thread([] { const ProfileScope elsewhere(Kind::stage, "elsewhere"); }).join();
  const std::vector<Track> tracks = profile.finish();
  ASSERT_EQ(tracks.size(), 3u);
  EXPECT_EQ(tracks[1].name, "named");
  EXPECT_FALSE(tracks[1].computes);
  EXPECT_THAT(names(tracks[1]), ElementsAre("there", "kernel"));
  EXPECT_EQ(tracks[1].spans[0].parent, -1);
  EXPECT_EQ(tracks[1].spans[1].parent, 0);
  EXPECT_EQ(tracks[2].name, "thread 3");
}

TEST(Profile, ShowsThatAThreadWaitsForOthers) {
  set_num_threads(2);
  Stream stream;
  Profile profile(stream);
  {
    const ProfileScope kernel(Work{"kernel", 1});
    parallel_for(4, 1, [](int64_t, int64_t) {});
  }
  const std::vector<Track> tracks = profile.finish();
  set_num_threads(1);
  ASSERT_EQ(tracks.size(), 1u);
  EXPECT_THAT(names(tracks[0]), ElementsAre("kernel", "wait_for_threads"));
  EXPECT_EQ(tracks[0].spans[1].kind, Kind::idle);
}

}  // namespace
}  // namespace lockstep
