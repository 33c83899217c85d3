#include "trainer/run_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/check.h"
#include "core/file.h"
#include "tests/trainer/temporary_folder.h"

namespace lockstep {
namespace {

RunStatus full() {
  RunStatus s;
  s.state = RunStatus::State::failed;
  s.reason = "the disk is full";
  s.step = 7, s.steps = 9;
  s.loss = 1.5, s.validation_loss = 1.75, s.tokens_per_second = 1000, s.seconds_left = 12;
  s.time_limit_left = 60;
  s.last_checkpoint = {5, 1700000000};
  s.hosts = {"a", "b"};
  s.slow_workers = {1};
  s.warnings = {"worker 1 on b is slow"};
  s.holder = this_process("42");
  s.heartbeat = 1700000009;
  s.version = "1.2.3";
  return s;
}

TEST(RunStatus, ReadsBackAsItWasWritten) {
  for (const RunStatus& status : {RunStatus(), full()}) {
    const auto json = to_json(status);
    EXPECT_EQ(to_json(run_status_from_json(nlohmann::json::parse(json.dump()))).dump(),
              json.dump());
  }
  EXPECT_EQ(to_json(full())["workers"].dump(),
            R"([{"rank":0,"host":"a","slow":false},{"rank":1,"host":"b","slow":true}])");
}

TEST(RunStatus, WhatIsNotFiniteIsNull) {
  RunStatus status;
  status.loss = NAN;
  EXPECT_TRUE(to_json(status)["loss"].is_null());
}

TEST(RunStatus, ADamagedFileIsAnError) {
  const TemporaryFolder folder;
  EXPECT_FALSE(read_status(folder.path()));
  auto other_state = to_json(full());
  other_state["state"] = "asleep";
  auto missing = to_json(full());
  missing.erase("steps");
  auto other_kind = to_json(full());
  other_kind["workers"] = 3;
  auto huge = to_json(full());
  huge["tokens_per_second"] = 1e300;
  auto late = to_json(full());
  late["heartbeat"] = int64_t{-9'000'000'000'000'000'000};
  for (const std::string& content :
       {huge.dump(), late.dump(), std::string(), std::string("{"), std::string("[]"),
        other_state.dump(), missing.dump(), other_kind.dump()}) {
    write_file_atomically(status_file(folder.path()), content);
    EXPECT_THROW(read_status(folder.path()), DataError) << content;
  }
}

TEST(StatusFile, IsWrittenOnceThereIsARun) {
  const TemporaryFolder folder;
  RunLease lease(this_process("8"));
  StatusFile status(lease, "1.0");
  status.update([](RunStatus& s) { s.step = 3; });
  status.write();
  EXPECT_FALSE(read_status(folder.path()));
  status.open(folder.path());
  status.write();
  const auto told = read_status(folder.path());
  ASSERT_TRUE(told);
  EXPECT_EQ(told->step, 3);
  EXPECT_EQ(told->state, RunStatus::State::running);
  EXPECT_EQ(told->holder.job, "8");
  EXPECT_GT(told->heartbeat, 0);
  status.end(RunStatus::State::failed, "not UTF-8: \xff");
  EXPECT_EQ(read_status(folder.path())->state, RunStatus::State::failed);
  status.end(RunStatus::State::stopped, "why");
  EXPECT_EQ(read_status(folder.path())->state, RunStatus::State::stopped);
  EXPECT_EQ(read_status(folder.path())->reason, "why");
}

}  // namespace
}  // namespace lockstep
