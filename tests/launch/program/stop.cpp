#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

World& world = World::get();

constexpr int kSteps = 120;

// The errors of a run's workers, through a pipe that holds about 40 lines: a run with a line a step
// cannot come to its end before the test has read on, however slow the test is.
class NarrowPipe {
 public:
  explicit NarrowPipe(const fs::path& path) {
    fs::remove(path);
    if (::mkfifo(path.c_str(), 0600) != 0) throw std::runtime_error("no pipe");
    descriptor_ = ::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (::fcntl(descriptor_, F_SETPIPE_SZ, 4096) != 4096) throw std::runtime_error("no small pipe");
  }
  ~NarrowPipe() { ::close(descriptor_); }

  // Reads on, for a moment at most; false when nothing came.
  bool read() {
    pollfd ready{descriptor_, POLLIN, 0};
    if (::poll(&ready, 1, 5) <= 0) return false;
    char piece[256];
    const ssize_t n = ::read(descriptor_, piece, sizeof(piece));
    if (n > 0) text.append(piece, static_cast<size_t>(n));
    return n > 0;
  }

  std::string text;  // read so far

 private:
  int descriptor_;
};

Arguments arguments(const fs::path& folder) {
  return train_arguments(world.data(), folder,
                         {"--steps", std::to_string(kSteps), "--log-every", "1"});
}

struct Way {
  int workers, signal;
  const char* name;
};

struct Stop : testing::TestWithParam<Way> {};

// Stopped by a signal: it saves and exits with 75; started again it goes on, and in the end has the
// bits of a run that was never stopped.
TEST_P(Stop, SavesAndGoesOn) {
  const Way way = GetParam();
  const fs::path whole = world.path(fmt::format("whole_{}", way.workers));
  if (!fs::exists(whole)) {
    const Result result = run(arguments(whole), {.workers = way.workers});
    ASSERT_EQ(result.code, 0) << result.err;
  }
  const fs::path stopped = world.path(fmt::format("stopped_{}", way.name));
  NarrowPipe errors(world.path("errors"));
  Process process(arguments(stopped),
                  {.workers = way.workers, .errors_file = world.path("errors")});
  while (process.running() && errors.text.find(" 3/120 ") == std::string::npos) errors.read();
  process.signal(way.signal);
  while (process.running()) errors.read();
  while (errors.read()) {
  }
  const Result result = process.wait();
  EXPECT_EQ(result.code, 75) << errors.text << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(errors.text, HasSubstr("stopped on request after step"));
  EXPECT_THAT(errors.text, HasSubstr("run it again to go on"));
  const std::vector<std::string> saved = step_folders(stopped);
  ASSERT_EQ(saved.size(), 1u);
  EXPECT_GE(saved[0], "step-00000003");
  EXPECT_LT(saved[0], fmt::format("step-{:08}", kSteps));

  const Result resumed =
      run({"train", "--run", stopped, "--threads", "1"}, {.workers = way.workers});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("going on from"));
  const Result diff = run({"checkpoint", "diff", whole, stopped});
  EXPECT_EQ(diff.code, 0) << diff.out << diff.err;
  EXPECT_EQ(lines_of(read_text(stopped / "metrics.jsonl")).size(), static_cast<size_t>(kSteps));
}

// No signal has a handler, whose frame would stand on the stack of a thread that computes, and only
// the thread that waits for them takes any (launch/signals.cpp).
TEST(Signals, ReachNoThreadThatComputes) {
  NarrowPipe errors(world.path("errors"));
  Arguments with_threads = arguments(world.path("signals"));
  *std::next(std::find(with_threads.begin(), with_threads.end(), "--threads")) = "3";
  Process process(with_threads, {.errors_file = world.path("errors")});
  while (process.running() && errors.text.find(" 3/120 ") == std::string::npos) errors.read();
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) {
    EXPECT_GE(expect_signal_interrupts_no_thread(process.id(), number), 4);
  }
  process.signal(SIGTERM);
  while (process.running()) errors.read();
  EXPECT_EQ(process.wait().code, 75);
}

// While a run goes on, another in its folder would destroy what it writes.
TEST(TwoRuns, CannotShareAFolder) {
  const fs::path folder = world.path("shared");
  NarrowPipe errors(world.path("errors"));
  Process process(arguments(folder), {.errors_file = world.path("errors")});
  while (process.running() && errors.text.find(" 3/120 ") == std::string::npos) errors.read();
  for (const int workers : {0, 2}) {
    expect_error(run({"train", "--run", folder}, {.workers = workers}), 2,
                 {"another program is training in", "choose another --run"});
  }
  while (process.running()) errors.read();
  const Result result = process.wait();
  EXPECT_EQ(result.code, 0) << errors.text;
  EXPECT_EQ(run({"train", "--run", folder}).code, 0);  // it is free again
}

INSTANTIATE_TEST_SUITE_P(Signals, Stop,
                         testing::Values(Way{0, SIGTERM, "TERM"}, Way{0, SIGINT, "INT"},
                                         Way{0, SIGUSR1, "USR1"}, Way{1, SIGUSR1, "USR1_1"},
                                         Way{2, SIGUSR1, "USR1_2"}, Way{3, SIGUSR1, "USR1_3"}),
                         [](const auto& way) { return std::string(way.param.name); });

}  // namespace
}  // namespace lockstep::black_box
