#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>

#include "tests/launch/program/world.h"

// The interactive mode, at a terminal.
namespace lockstep::black_box {
namespace {

using testing::HasSubstr;
using testing::Not;

World& world = World::get();

constexpr std::chrono::seconds kTimeLimit{60};  // only to end what hangs

// The program at a terminal of its own, which shows `screen` and is typed at.
class Terminal {
 public:
  explicit Terminal(const Arguments& arguments) : master_(::posix_openpt(O_RDWR | O_NOCTTY)) {
    if (master_ < 0 || ::grantpt(master_) != 0 || ::unlockpt(master_) != 0) {
      throw std::runtime_error("no terminal");
    }
    const std::string name = ::ptsname(master_);
    std::vector<std::string> line{LOCKSTEP_PROGRAM};
    line.insert(line.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : line) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    if (pid_ > 0) return;
    ::setsid();
    const int slave = ::open(name.c_str(), O_RDWR);  // becomes the controlling terminal
    for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
      if (::dup2(slave, descriptor) < 0) ::_exit(126);
    }
    ::close(master_);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~Terminal() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(master_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void type(const std::string& keys) const {
    ASSERT_EQ(::write(master_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }

  // Reads until the screen shows this after what was awaited before.
  bool await(const std::string& text) {
    const auto start = std::chrono::steady_clock::now();
    size_t place = 0;
    while ((place = screen.find(text, seen_)) == std::string::npos) {
      if (!read() || std::chrono::steady_clock::now() - start > kTimeLimit) {
        ADD_FAILURE() << "'" << text << "' does not come; the screen:\n" << screen;
        return false;
      }
    }
    seen_ = place + text.size();
    return true;
  }

  // Reads to the end; the exit code, or 128 + the signal.
  int wait() {
    const auto start = std::chrono::steady_clock::now();
    while (read() && std::chrono::steady_clock::now() - start < kTimeLimit) {
    }
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  pid_t id() const { return pid_; }

  std::string screen;

 private:
  // Waits a moment for more; false when the program has closed its side.
  bool read() {
    pollfd ready{master_, POLLIN, 0};
    if (::poll(&ready, 1, 50) <= 0) return true;
    char piece[256];
    const ssize_t n = ::read(master_, piece, sizeof(piece));
    if (n <= 0) return false;
    screen.append(piece, static_cast<size_t>(n));
    return true;
  }

  int master_;
  pid_t pid_ = -1;
  size_t seen_ = 0;
};

const std::string kControlC = "\x03", kControlD = "\x04";

struct Interactive : testing::Test {
  static Arguments arguments(const std::filesystem::path& model, const Arguments& more) {
    Arguments all{"generate", "--checkpoint", model, "--interactive", "--precision", "fp32"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  // A model whose context takes a while to fill.
  static std::filesystem::path slow() {
    const auto folder = world.path("slow");
    if (!std::filesystem::exists(folder)) {
      const Result made = run({"train", "--data",        world.data(), "--run",
                               folder,  "--layers",      "4",          "--heads",
                               "4",     "--hidden-size", "64",         "--context-length",
                               "6000",  "--batch-size",  "1",          "--virtual-workers",
                               "1",     "--steps",       "1",          "--threads",
                               "1",     "--precision",   "fp32"});
      EXPECT_EQ(made.code, 0) << made.err;
    }
    return folder;
  }
};

TEST_F(Interactive, ContinuesEachLineUntilControlD) {
  const std::string text = run({"generate", "--checkpoint", world.run(), "--precision", "fp32",
                                "--prompt", "The", "--greedy", "--max-tokens", "8"})
                               .out.substr(3, 8);
  Terminal terminal(arguments(world.run(), {"--greedy", "--max-tokens", "8", "--verbose"}));
  ASSERT_TRUE(terminal.await("> "));
  terminal.type("The\n");
  ASSERT_TRUE(terminal.await(text));
  ASSERT_TRUE(terminal.await("[8 tokens"));
  ASSERT_TRUE(terminal.await("KV cache"));
  ASSERT_TRUE(terminal.await("> "));
  terminal.type("\n");  // nothing to continue
  ASSERT_TRUE(terminal.await("> "));
  terminal.type(std::string(40, 'x') + "\n");
  ASSERT_TRUE(terminal.await("the prompt has 40 tokens"));
  ASSERT_TRUE(terminal.await("> "));
  terminal.type("The\n");
  ASSERT_TRUE(terminal.await(text));
  ASSERT_TRUE(terminal.await("> "));
  terminal.type(kControlD);
  EXPECT_EQ(terminal.wait(), 0) << terminal.screen;
  size_t texts = 0;
  for (size_t at = 0; (at = terminal.screen.find("ended by ", at)) != std::string::npos; at++) {
    texts++;
  }
  EXPECT_EQ(texts, 2u) << terminal.screen;
}

TEST_F(Interactive, ControlCStopsTheTextAndNoMore) {
  Terminal terminal(
      arguments(slow(), {"--max-tokens", "6000", "--forbid", "<|endoftext|>", "--threads", "1"}));
  ASSERT_TRUE(terminal.await("> "));
  for (int round = 0; round < 2; round++) {
    terminal.type("Begin\n");
    ASSERT_TRUE(terminal.await("\x1b[0m"));  // behind the prompt, before the text
    expect_signal_interrupts_no_thread(terminal.id(), SIGINT);
    terminal.type(kControlC);
    ASSERT_TRUE(terminal.await("ended by interrupted"));
    ASSERT_TRUE(terminal.await("> "));
  }
  // At the prompt it takes back the line.
  terminal.type("never mind" + kControlC);
  ASSERT_TRUE(terminal.await("> "));
  terminal.type(kControlC);
  ASSERT_TRUE(terminal.await("> "));
  EXPECT_THAT(terminal.screen, Not(HasSubstr("\x1b[1mnever mind")));
  terminal.type(kControlD);
  EXPECT_EQ(terminal.wait(), 0) << terminal.screen;
}

TEST_F(Interactive, NeedsATerminalAndNoPrompts) {
  expect_error(run(arguments(world.run(), {})), 2,
               {"--interactive needs a terminal", "--prompt-file"});
  expect_error(run(arguments(world.run(), {"--prompt", "a"})), 2,
               {"--interactive contradicts --prompt;"});
  expect_error(run(arguments(world.run(), {"--prompt-file", "a"})), 2,
               {"--interactive contradicts --prompt-file"});
  expect_error(run(arguments(world.run(), {"--json"})), 2, {"--interactive contradicts --json"});
  expect_error(run(arguments(world.run(), {"--batch-size", "2"})), 2,
               {"--interactive contradicts --batch-size"});
}

// A page of 16 tokens of this model is 4 KiB, and there is room for one.
TEST_F(Interactive, KeepsToTheMemoryForKeysAndValues) {
  Terminal terminal(arguments(world.run(), {"--max-tokens", "8", "--kv-cache-memory", "0.000006"}));
  ASSERT_TRUE(terminal.await("> "));
  terminal.type("The quick brown fox\n");
  ASSERT_TRUE(terminal.await("--kv-cache-memory is 6.3 KiB"));
  ASSERT_TRUE(terminal.await("> "));
  terminal.type("The\n");
  ASSERT_TRUE(terminal.await("tokens/s"));
  terminal.type(kControlD);
  EXPECT_EQ(terminal.wait(), 0) << terminal.screen;
}

}  // namespace
}  // namespace lockstep::black_box
