#include "trainer/run_lease.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/file.h"
#include "tests/trainer/temporary_folder.h"
#include "trainer/run_status.h"

static std::atomic<int> flushes{0};

// In place of the system's for this whole program, to count.
extern "C" int fsync(int descriptor) {
  flushes++;
  return static_cast<int>(::syscall(SYS_fsync, descriptor));
}

namespace lockstep {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;

constexpr milliseconds kBeat{5}, kStale{100};

// Takes it, or waits until it can.
void take(RunLease& lease, const std::filesystem::path& run) {
  while (!lease.try_take(lease_of_run(run), [] {})) std::this_thread::sleep_for(milliseconds(2));
}

std::string refusal(RunLease& lease, const std::filesystem::path& run) {
  try {
    take(lease, run);
  } catch (const UsageError& error) {
    return error.what();
  }
  ADD_FAILURE() << "it was not refused";
  return "";
}

Holder elsewhere() {
  Holder holder = this_process("4711");
  holder.host = "node9";
  holder.machine = "another";
  return holder;
}

struct RunLeaseTest : testing::Test {
  std::filesystem::path file() const { return folder.path() / "lease.json"; }
  void leave(const Holder& holder) const {
    write_file_atomically(file(), to_json(holder).dump() + "\n");
  }
  TemporaryFolder folder;
};

TEST_F(RunLeaseTest, IsOneProgramsUntilItGoes) {
  {
    RunLease one(this_process("17"), kBeat, kStale), two(this_process(""), kBeat, kStale);
    EXPECT_TRUE(one.try_take(lease_of_run(folder.path()), [] {}));
    EXPECT_TRUE(one.try_take(lease_of_run(folder.path()), [] {})) << "it has it";
    EXPECT_THAT(refusal(two, folder.path()),
                AllOf(HasSubstr("is training in"), HasSubstr("job 17"), HasSubstr(host_name()),
                      HasSubstr(fmt::format("process {}", ::getpid()))));
    one.check();
  }
  EXPECT_FALSE(std::filesystem::exists(file()));
  RunLease three(this_process(""), kBeat, kStale);
  EXPECT_TRUE(three.try_take(lease_of_run(folder.path()), [] {}));
  EXPECT_EQ(three.taken_over_from(), "");
}

// Killed on this machine: its process is not there, or is another's by now.
TEST_F(RunLeaseTest, OfAProcessThatIsGoneItIsTakenOverAtOnce) {
  const pid_t child = ::fork();
  if (child == 0) ::pause();
  Holder dead = this_process("");
  dead.pid = child;
  ::kill(child, SIGKILL);
  siginfo_t ended;
  ::waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT);
  EXPECT_EQ(is_alive(dead), false) << "a zombie";
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(is_alive(dead), false);
  Holder reused = this_process("");
  reused.process_start--;
  for (const Holder& holder : {dead, reused}) {
    leave(holder);
    RunLease lease(this_process(""), kBeat, std::chrono::hours(1));
    EXPECT_TRUE(lease.try_take(lease_of_run(folder.path()), [] {}));
    EXPECT_THAT(lease.taken_over_from(), HasSubstr(std::to_string(holder.pid)));
    lease.check();
  }
}

TEST_F(RunLeaseTest, WhatNoProgramWritesIsNotRead) {
  auto json = to_json(this_process(""));
  json["pid"] = -1, json["started"] = int64_t{1} << 62;
  EXPECT_EQ(holder_from_json(json).pid, 0);
  EXPECT_EQ(holder_from_json(json).since, 0);
  EXPECT_EQ(is_alive(holder_from_json(json)), std::nullopt);
}

TEST_F(RunLeaseTest, OfAnotherMachineItIsRefusedAtTheNextBeat) {
  RunLease theirs(elsewhere(), kBeat, kStale);
  take(theirs, folder.path());
  RunLease ours(this_process(""), kBeat, std::chrono::hours(1));
  EXPECT_THAT(refusal(ours, folder.path()), AllOf(HasSubstr("node9"), HasSubstr("job 4711")));
  theirs.check();
}

TEST_F(RunLeaseTest, OfAnotherMachineItIsTakenOverWithoutABeat) {
  for (const std::string& content :
       {to_json(elsewhere()).dump(), std::string(), std::string("?")}) {
    write_file_atomically(file(), content);
    RunLease ours(this_process(""), kBeat, kStale);
    EXPECT_FALSE(ours.try_take(lease_of_run(folder.path()), [] {}));
    EXPECT_EQ(read_file(file()), content) << "left alone so far";
    const auto start = std::chrono::steady_clock::now();
    take(ours, folder.path());
    EXPECT_GE(std::chrono::steady_clock::now() - start, kStale - milliseconds(1));
    ours.check();
  }
}

// A disk that gigabytes are being flushed to would hold up whoever flushes there.
TEST_F(RunLeaseTest, BeatsDoNotWaitForTheDisk) {
  const int before = flushes;
  RunLease lease(this_process(""), kBeat, kStale);
  StatusFile status(lease, "1");
  status.open(folder.path());
  std::atomic<int> beats = 0;
  EXPECT_TRUE(lease.try_take(lease_of_run(folder.path()), [&] { status.write(), beats++; }));
  const int taken = flushes;
  EXPECT_GT(taken, before) << "that it was taken outlives the power";
  while (beats < 3) std::this_thread::sleep_for(kBeat);
  EXPECT_EQ(flushes, taken);
  EXPECT_TRUE(read_status(folder.path()));
  EXPECT_THAT(read_file(file()), testing::Not(HasSubstr(R"("beat":0)")));
}

// Such as one that was held up for longer than others wait.
TEST_F(RunLeaseTest, WhoLostItIsTold) {
  RunLease lease(this_process(""), kBeat, kStale);
  std::atomic<int> beats = 0;
  EXPECT_TRUE(lease.try_take(lease_of_run(folder.path()), [&] { beats++; }));
  leave(elsewhere());
  for (const int now = beats; beats < now + 2;) std::this_thread::sleep_for(kBeat);
  EXPECT_TRUE(lease.lost());
  try {
    lease.check();
    ADD_FAILURE() << "not told";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("node9"));
  }
  EXPECT_THAT(read_file(file()), HasSubstr("node9")) << "and leaves theirs alone";
}

TEST_F(RunLeaseTest, ThatItWasRemovedIsTheLikelierCause) {
  RunLease lease(this_process(""), kBeat, kStale);
  EXPECT_TRUE(lease.try_take(lease_of_run(folder.path()), [] {}));
  // Again and again: a beat that is under way brings it back.
  while (!lease.lost()) std::filesystem::remove(file()), std::this_thread::sleep_for(kBeat);
  try {
    lease.check();
    ADD_FAILURE() << "not told";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(file().string()), HasSubstr("was removed while"),
                                    testing::Not(HasSubstr("taken over"))));
  }
}

// However many start at the same moment.
TEST_F(RunLeaseTest, OfManyAtOnceOneHasIt) {
  Holder dead = this_process("");
  dead.process_start--;
  for (int round = 0; round < 20; round++) {
    leave(dead);
    constexpr int kMany = 4;
    std::vector<std::unique_ptr<RunLease>> leases;
    for (int i = 0; i < kMany; i++) {
      leases.push_back(std::make_unique<RunLease>(this_process(""), std::chrono::hours(1), kStale));
    }
    std::atomic<int> have = 0;
    std::vector<std::thread> threads;
    for (const auto& lease : leases) {
      threads.emplace_back([&] {
        try {
          take(*lease, folder.path());
          have++;
        } catch (const UsageError&) {
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(have, 1);
  }
}

}  // namespace
}  // namespace lockstep
