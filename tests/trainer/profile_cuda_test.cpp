#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "tests/kernels/on_device.h"
#include "tests/trainer/rehearsed.h"
#include "trainer/profile_report.h"
#include "trainer/rehearsal.h"

namespace lockstep {
namespace {

using ProfileCuda = kernels::tests::CudaTest;

// Calls, bytes and FLOPs.
using Work3 = std::tuple<int64_t, double, double>;

// The work that is timed in a step's streams is the work that a rehearsal notes, whose times are
// predicted. Batches are copied ahead: they are left out.
TEST_F(ProfileCuda, TimesWhatARehearsalNotes) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    TrainConfig config = tests::small_training(family, DType::fp32);
    config.device = Device::cuda;
    config.batch_size = 4;  // two micro-batches
    std::map<std::string, Work3> noted, timed;
    for (const auto& row : predicted_step(config, 1, known_gpus().front()).rows) {
      if (row.name != "copy") noted[std::string(row.name)] = {row.calls, row.bytes, row.flops};
    }

    tests::RealTraining real(config);
    for (int i = 0; i < 2; i++) real.training.step();  // the second one is a graph
    Profile profile(real.training.model().stream());
    const double loss = real.training.step().loss;
    const std::vector<Track> tracks = profile.finish();
    EXPECT_GT(loss, 0);
    for (const Track& track : tracks) {
      for (const Span& span : track.spans) {
        if (span.kind != Span::Kind::work) continue;
        EXPECT_LE(0, span.begin_ns);
        EXPECT_LE(span.begin_ns, span.end_ns);
        if (span.work.name == "copy") continue;
        EXPECT_TRUE(track.computes) << track.name;
        auto& [calls, bytes, flops] = timed[std::string(span.work.name)];
        calls++, bytes += span.work.bytes, flops += span.work.flops;
      }
    }
    EXPECT_EQ(timed, noted);
    EXPECT_GT(profile_totals(tracks).rows.size(), 10u);
  }
}

// Work of a stream in order, and the calls that enqueued it in the thread's track.
TEST_F(ProfileCuda, WorkIsInItsStreamAndTheCallInTheThread) {
  Stream first(Device::cuda), second(Device::cuda);
  const Buffer a(DType::fp32, {1000}, Device::cuda), b(DType::fp32, {1000}, Device::cuda);
  Profile profile(first);
  copy(b.tensor(), a.tensor(), first);
  copy(b.tensor(), a.tensor(), first);
  Event done(Device::cuda);
  done.record(first);
  second.wait(done);
  copy(a.tensor(), b.tensor(), second);
  const std::vector<Track> tracks = profile.finish();
  ASSERT_EQ(tracks.size(), 3u);
  const Track &thread = tracks[2], &stream = tracks[0].computes ? tracks[0] : tracks[1],
              &other = tracks[0].computes ? tracks[1] : tracks[0];
  EXPECT_EQ(thread.name, "training");
  EXPECT_EQ(stream.name, "compute stream");
  ASSERT_EQ(thread.spans.size(), 3u);
  for (const Span& span : thread.spans) EXPECT_EQ(span.kind, Span::Kind::enqueue);
  ASSERT_EQ(stream.spans.size(), 2u);
  ASSERT_EQ(other.spans.size(), 1u);
  // Timers count milliseconds in fp32: of a second, to 60 ns.
  EXPECT_LE(stream.spans[0].end_ns, stream.spans[1].begin_ns + 1000);
  EXPECT_LE(stream.spans[1].end_ns, other.spans[0].begin_ns + 1000);
  second.synchronize();
}

}  // namespace
}  // namespace lockstep
