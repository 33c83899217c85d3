#include "trainer/run_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/trainer/temporary_folder.h"

namespace lockstep {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;

struct RunWatchTest : testing::Test {
  RunWatchTest() {
    config.steps = 1000;
    status.open(folder.path());
  }
  // A step in which the last worker takes this long, and the others a second.
  bool step(double last_one) {
    number++;
    return watch.step_done({.step = number, .worker_seconds = {1, 1, last_one}}, last_one, {});
  }
  RunStatus told() {
    status.write();
    return *read_status(folder.path());
  }

  TemporaryFolder folder;
  RunLease lease{this_process("")};
  StatusFile status{lease, "1"};
  Progress progress{false, 1};
  TrainConfig config;
  RunWatch watch{config, progress, &status};
  int64_t number = 0;
};

TEST_F(RunWatchTest, TellsOfSlowWorkersWhileTheyAreSlow) {
  watch.start({"a", "b", "b"}, 0, std::nullopt, 0, 0);
  step(100);  // the first one warms up
  for (int i = 0; i < SlowWorkers::kWindow; i++) step(1.5);
  EXPECT_THAT(told().slow_workers, ElementsAre(2));
  EXPECT_THAT(told().warnings, ElementsAre(HasSubstr("worker 2 on b is slow")));
  for (int i = 0; i < SlowWorkers::kWindow; i++) step(1);
  EXPECT_THAT(told().slow_workers, ElementsAre());
  EXPECT_THAT(told().warnings, ElementsAre());
}

TEST_F(RunWatchTest, StopsOnceWhenTheTimeIsNearlyOver) {
  config.end_by = TimeLimit::Clock::now() + seconds(1000);
  watch.start({"a", "b", "b"}, 0, std::nullopt, 0, 0);
  EXPECT_FALSE(step(1));
  EXPECT_TRUE(step(480));  // twice that and the margin of 50 s are more than there is
  EXPECT_FALSE(step(480)) << "it has been said";
  EXPECT_THAT(told().reason, HasSubstr("time limit"));
}

TEST_F(RunWatchTest, DoesNotStopARunThatHasItsSteps) {
  config.steps = 2;
  config.end_by = TimeLimit::Clock::now() + seconds(1000);
  watch.start({"a", "b", "b"}, 0, std::nullopt, 0, 0);
  EXPECT_FALSE(step(1));
  EXPECT_FALSE(step(900));
}

TEST_F(RunWatchTest, RefusesATimeLimitWithoutRoomForASave) {
  config.end_by = TimeLimit::Clock::now() + seconds(100);
  EXPECT_THROW(watch.start({"a"}, 0, std::nullopt, int64_t{20'000'000'000}, 0), UsageError);
}

}  // namespace
}  // namespace lockstep
