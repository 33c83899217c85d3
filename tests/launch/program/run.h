#pragma once
#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

// The built program as a user runs it: arguments in; exit code, standard output and errors out.
namespace lockstep::black_box {

using Arguments = std::vector<std::string>;

struct Options {
  int workers = 0;  // under mpirun with so many; 0: without
  std::string input = {};
  std::filesystem::path output_file = {};  // standard output goes here instead of into Result::out
  std::filesystem::path errors_file =
      {};                      // errors of the workers go here instead of into Result::err
  bool as_nobody = false;      // without the rights of root
  bool emulated = false;       // lockstep-emulated, which sees GPUs, instead of lockstep
  Arguments environment = {};  // NAME=VALUE, for the program and its workers
  std::string prelude = {};    // a shell's words that each worker begins with: "export A=$B"
};

struct Result {
  int code;  // 128 + N when it was ended by signal N
  std::string out, err;
};

// A run under way. It is killed when it outlives its time limit, and when the object goes.
class Process {
 public:
  explicit Process(const Arguments& arguments, const Options& options = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void signal(int number) const;
  bool running();  // false once it has ended
  Result wait();

  pid_t id() const { return pid_; }

 private:
  std::filesystem::path folder_;  // of what it prints
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

// No thread of the process is interrupted by this signal (launch/signals.cpp): it has no handler,
// and one thread alone takes it. Returns how many threads there are.
int expect_signal_interrupts_no_thread(pid_t process, int number);

// Runs to the end.
Result run(const Arguments& arguments, const Options& options = {});

// stderr without what mpirun adds of its own when a worker's exit code is not zero.
std::string without_mpirun(const std::string& err);

// The run failed with this exit code, printed nothing to stdout, and one message of at most two
// lines that says each of `parts`.
void expect_error(const Result& result, int code, const std::vector<std::string>& parts);

}  // namespace lockstep::black_box
