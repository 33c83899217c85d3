#include "tests/launch/program/run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kTimeLimit{120};  // only to end what hangs
constexpr uid_t kNobody = 65534;

std::string content_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

Arguments command_line(const Arguments& arguments, const Options& options) {
  Arguments line;
  if (!options.environment.empty()) {
    line = {"/usr/bin/env"};
    line.insert(line.end(), options.environment.begin(), options.environment.end());
  }
  if (options.workers > 0) {
    line.insert(line.end(), {LOCKSTEP_MPIEXEC, "-np", std::to_string(options.workers)});
  }
  if (!options.errors_file.empty()) {
    for (const char* part : {"/bin/sh", "-c", "exec \"$@\" 2>\"$0\""}) line.emplace_back(part);
    line.push_back(options.errors_file);
  }
  if (!options.prelude.empty()) {
    line.insert(line.end(), {"/bin/sh", "-c", options.prelude + "; exec \"$@\"", "sh"});
  }
  line.push_back(options.emulated ? LOCKSTEP_EMULATED : LOCKSTEP_PROGRAM);
  line.insert(line.end(), arguments.begin(), arguments.end());
  return line;
}

// Of a thread's status in /proc: whether its set of signals `field` has this one.
bool has_signal(const std::string& status, const std::string& field, int number) {
  const size_t at = status.find(field + ":");
  if (at == std::string::npos) throw std::runtime_error(field + " is missing");
  return std::stoull(status.substr(at + field.size() + 1), nullptr, 16) >> (number - 1) & 1;
}

void redirect(int descriptor, const fs::path& path, int flags) {
  const int file = ::open(path.c_str(), flags, 0644);
  if (file < 0 || ::dup2(file, descriptor) < 0) ::_exit(126);
}

void give_up_rights() {
  if (::setgroups(0, nullptr) != 0 || ::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) {
    ::_exit(126);
  }
}

}  // namespace

Process::Process(const Arguments& arguments, const Options& options) {
  std::string pattern = fs::temp_directory_path() / "lockstep-process-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
  folder_ = pattern;
  std::ofstream(folder_ / "in", std::ios::binary) << options.input;
  Arguments line = command_line(arguments, options);
  std::vector<char*> argv;
  for (std::string& argument : line) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const fs::path out = options.output_file.empty() ? folder_ / "out" : options.output_file;
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error("cannot fork");
  if (pid_ > 0) return;
  ::setpgid(0, 0);
  redirect(STDIN_FILENO, folder_ / "in", O_RDONLY);
  redirect(STDOUT_FILENO, out, O_WRONLY | O_CREAT | O_TRUNC);
  redirect(STDERR_FILENO, folder_ / "err", O_WRONLY | O_CREAT | O_TRUNC);
  if (options.as_nobody) give_up_rights();
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

Process::~Process() {
  if (!ended_) {
    ::kill(-pid_, SIGKILL);
    ::waitpid(pid_, &status_, 0);
  }
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

void Process::signal(int number) const { ::kill(pid_, number); }

bool Process::running() {
  if (!ended_) ended_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
  return !ended_;
}

Result Process::wait() {
  const auto start = std::chrono::steady_clock::now();
  while (running()) {
    if (std::chrono::steady_clock::now() - start > kTimeLimit) {
      ADD_FAILURE() << "it hangs; so far:\n" << content_of(folder_ / "err");
      ::kill(-pid_, SIGKILL);
      ::waitpid(pid_, &status_, 0);
      ended_ = true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_),
          content_of(folder_ / "out"), content_of(folder_ / "err")};
}

int expect_signal_interrupts_no_thread(pid_t process, int number) {
  int threads = 0, takers = 0;
  for (const auto& task : fs::directory_iterator(fmt::format("/proc/{}/task", process))) {
    const std::string status = content_of(task.path() / "status");
    EXPECT_FALSE(has_signal(status, "SigCgt", number)) << status;
    takers += has_signal(status, "SigBlk", number) ? 0 : 1;
    threads++;
  }
  EXPECT_EQ(takers, 1) << "of " << threads << " threads, signal " << number;
  return threads;
}

Result run(const Arguments& arguments, const Options& options) {
  return Process(arguments, options).wait();
}

std::string without_mpirun(const std::string& err) {
  std::istringstream in(err);
  std::string own;
  bool inside = false;  // between two rules
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("----------")) {
      inside = !inside;
    } else if (!inside && line.find("ORTE_ERROR_LOG") == std::string::npos &&
               line.find("more process") == std::string::npos &&
               line.find("orte_base_help_aggregate") == std::string::npos) {
      own += line + "\n";
    }
  }
  return own;
}

void expect_error(const Result& result, int code, const std::vector<std::string>& parts) {
  const std::string err = without_mpirun(result.err);
  SCOPED_TRACE("stderr: " + result.err);
  EXPECT_EQ(result.code, code);
  EXPECT_EQ(result.out, "");
  // Notes may come before the message, nothing after it.
  const size_t message = err.starts_with("lockstep") ? 0 : err.find("\nlockstep");
  ASSERT_NE(message, std::string::npos) << "there is no message";
  const std::string text = err.substr(err.find("lockstep", message));
  EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_EQ(text.find("\nlockstep"), std::string::npos) << "the message comes twice";
  EXPECT_EQ(text.find("internal error"), std::string::npos);
  for (const std::string& part : parts) EXPECT_THAT(text, testing::HasSubstr(part));
}

}  // namespace lockstep::black_box
