#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>

// Errors. Three kinds are a user's to mend and carry the exit code of the program; their message is
// one or two lines: what is wrong, where, what to do. CHECK guards what only a mistake in this
// program can break.
namespace lockstep {

enum class ExitCode : int {
  done = 0,
  difference = 1,  // `checkpoint diff` found one
  usage = 2,       // wrong usage or configuration
  data = 3,        // unusable data or checkpoint
  device = 4,      // device or communication failure
  stopped = 75,    // stopped on request after saving: run me again (EX_TEMPFAIL)
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode exit_code() const { return code_; }

 private:
  ExitCode code_;
};

template <ExitCode kCode>
class ErrorOf : public Error {
 public:
  template <class... Args>
  explicit ErrorOf(fmt::format_string<Args...> format, Args&&... args)
      : Error(kCode, fmt::format(format, std::forward<Args>(args)...)) {}
};

using UsageError = ErrorOf<ExitCode::usage>;
using DataError = ErrorOf<ExitCode::data>;
using DeviceError = ErrorOf<ExitCode::device>;

// Memory of a GPU, or that of the host which it reaches, is used up.
struct OutOfGpuMemory : DeviceError {
  using DeviceError::DeviceError;
};

namespace detail {
[[noreturn]] void check_failed(const char* expression, const char* file, int line,
                               const std::string& message);
}

}  // namespace lockstep

// Throws std::logic_error with expression, file, line and an optional fmt message.
#define CHECK(condition, ...)                                                                      \
  (static_cast<bool>(condition) ? void(0)                                                          \
                                : ::lockstep::detail::check_failed(#condition, __FILE__, __LINE__, \
                                                                   ::fmt::format("" __VA_ARGS__)))
