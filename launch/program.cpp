#include "launch/program.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <new>
#include <optional>
#include <thread>

#include "comm/agreement.h"
#include "launch/command.h"
#include "launch/signals.h"

namespace lockstep::launch {
namespace {

bool on_all_workers(const Arguments&) { return true; }
bool on_one(const Arguments&) { return false; }
bool on_request(const Arguments&) { return true; }
bool never(const Arguments&) { return false; }

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"prepare", "turn text into a dataset: train or load a tokenizer, encode, split", on_one,
       run_prepare, never},
      {"train", "train a model on a dataset, or go on with a run", on_all_workers, run_train,
       on_request},
      {"generate", "let a model continue a prompt", generate_is_collective, run_generate,
       generate_stops},
      {"evaluate", "score a model on a dataset: loss, perplexity, bits a byte", on_all_workers,
       run_evaluate, never},
      {"checkpoint", "list, inspect, verify, compare, export, import or quantize checkpoints",
       checkpoint_is_collective, run_checkpoint, never},
      {"status", "how a run is doing, from any terminal that sees its folder", on_one, run_status,
       never},
      {"doctor", "what this machine has, what that means for training, what to mend",
       on_all_workers, run_doctor, never},
  };
  return all;
}

std::string overview() {
  std::string text =
      "Usage: lockstep COMMAND [OPTION]...\n"
      "\n"
      "Trains transformer language models on one machine or many (with mpirun or Slurm), from raw\n"
      "text to a scored model.\n"
      "\n"
      "Commands:\n";
  for (const Command& command : commands()) {
    text += fmt::format("  {:<12}{}\n", command.name, command.summary);
  }
  text +=
      "\n"
      "'lockstep help COMMAND' or 'lockstep COMMAND --help' lists a command's options.\n"
      "\n"
      "For example:\n"
      "  lockstep prepare --input texts/ --output data\n"
      "  mpirun -np 2 lockstep train --data data --run run\n"
      "  lockstep generate --checkpoint run --prompt \"Once upon a time\"\n"
      "\n"
      "Exit codes: 0 done; 1 'checkpoint diff' or 'verify --replay' found a difference; 2 wrong\n"
      "usage or configuration; 3 unusable data or checkpoint; 4 device or communication failure;\n"
      "75 stopped on request, after saving (run it again to go on).\n";
  return text;
}

const Command& find_command(const std::string& name) {
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (command.name == name) return command;
    names.push_back(command.name);
  }
  const auto near = nearest(name, names);
  if (near) throw UsageError("unknown command '{}'; did you mean {}?", name, *near);
  throw UsageError("unknown command '{}'; there are {}", name, fmt::join(names, ", "));
}

// "warning: " before warnings, nothing before progress and notes.
class LevelPrefix : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    std::string_view prefix;
    if (message.level == spdlog::level::warn) prefix = "warning: ";
    if (message.level >= spdlog::level::err) prefix = "error: ";
    out.append(prefix.data(), prefix.data() + prefix.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<LevelPrefix>();
  }
};

// Notes go to stderr, results to stdout.
void start_logging() {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<LevelPrefix>('L').set_pattern("%^%L%$%v");
  auto logger = spdlog::stderr_color_mt("lockstep");
  logger->set_formatter(std::move(formatter));
  spdlog::set_default_logger(logger);
}

const char* const kOutputFails = "standard output cannot be written; is the disk full?";

bool output_fails() { return std::fflush(stdout) != 0 || std::ferror(stdout) != 0; }

struct Failure {
  ExitCode code;
  std::string message;
  bool shared;  // every worker is known to have it
};

Failure describe(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const SharedError& error) {
    return {error.exit_code(), error.what(), true};
  } catch (const Error& error) {
    return {error.exit_code(), error.what(), false};
  } catch (const std::bad_alloc&) {
    return {ExitCode::device,
            "out of memory; use a smaller model or micro-batch, or a machine with more", false};
  } catch (const std::filesystem::filesystem_error& error) {
    return {ExitCode::data, fmt::format("{}: {}", error.path1().string(), error.code().message()),
            false};
  } catch (const std::exception& error) {
    if (output_fails()) return {ExitCode::data, kOutputFails, false};
    return {ExitCode::device, fmt::format("internal error, please report it: {}", error.what()),
            false};
  }
}

void print_error(const std::string& command, const std::string& message) {
  spdlog::default_logger()->flush();
  std::fflush(stdout);
  fmt::print(stderr, "{}: {}\n", command, message);
}

// One worker prints what all share. A failure of one worker alone ends the others too, because they
// wait for it in some collective operation.
int report(const Failure& failure, const std::string& command, MpiSession* session) {
  const int code = static_cast<int>(failure.code);
  if (session == nullptr || session->size() == 1) {
    print_error(command, failure.message);
  } else if (failure.shared || session->all_failed()) {
    if (session->rank() == 0) print_error(command, failure.message);
  } else {
    print_error(command, fmt::format("worker {} on {}: {}", session->rank(), session->host(),
                                     failure.message));
    // Peers that notice at about the same time shall still say what they know.
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    session->abort(code);
  }
  return code;
}

int run_command(const Command& command, const Arguments& arguments, int argc, char** argv) {
  // From here on, so that a request during start-up is not lost.
  if (command.stops(arguments) && !wants_help(arguments)) stop_on_signals();
  const std::string shown = "lockstep " + command.name;
  std::optional<MpiSession> session;
  MpiSession* workers = nullptr;
  const bool collective = command.collective(arguments) && !wants_help(arguments);
  try {
    if (MpiSession::under_launcher() || collective) {
      workers = &session.emplace(&argc, &argv);
      if (workers->rank() != 0) spdlog::set_level(spdlog::level::err);
    }
    if (workers != nullptr && workers->size() > 1 && !collective && !wants_help(arguments)) {
      throw SharedError(ExitCode::usage, "runs as one process; start it without mpirun");
    }
    const ExitCode code = command.run(arguments, workers);
    if (output_fails()) throw DataError("{}", kOutputFails);
    return static_cast<int>(code);
  } catch (...) {
    return report(describe(std::current_exception()), shown, workers);
  }
}

// Prints a text that every worker has, and returns the exit code. Under mpirun even this takes MPI:
// a worker that fails without it makes mpirun end the others, the one that prints among them.
int print_once(std::FILE* stream, const std::string& text, ExitCode code, int argc, char** argv) {
  std::optional<MpiSession> session;
  if (MpiSession::under_launcher()) session.emplace(&argc, &argv);
  if (session && session->rank() != 0) return static_cast<int>(code);
  std::fputs(text.c_str(), stream);
  if (output_fails()) {
    print_error("lockstep", kOutputFails);
    code = ExitCode::data;
  }
  return static_cast<int>(code);
}

}  // namespace

void on_every_worker(MpiSession* session, const std::function<void()>& f) {
  session == nullptr ? f() : run_together(session->world(), f);
}

bool wants_help(const Arguments& arguments) {
  return std::any_of(arguments.begin(), arguments.end(),
                     [](const std::string& a) { return a == "--help" || a == "-h"; });
}

ExitCode show_help(const OptionTable& table, const MpiSession* session) {
  if (first_worker(session)) fmt::print("{}", table.help());
  return ExitCode::done;
}

int run_program(int argc, char** argv) {
  start_logging();
  Arguments arguments(argv + 1, argv + argc);
  const auto say = [&](std::FILE* stream, const std::string& text, ExitCode code) {
    return print_once(stream, text, code, argc, argv);
  };
  if (arguments.empty()) return say(stderr, overview(), ExitCode::usage);
  const std::string first = arguments.front();
  arguments.erase(arguments.begin());
  if (first == "--version") {
    return say(stdout, fmt::format("lockstep {}\n", LOCKSTEP_VERSION), ExitCode::done);
  }
  if (first == "--help" || first == "-h" || (first == "help" && arguments.empty())) {
    return say(stdout, overview(), ExitCode::done);
  }
  try {
    if (first != "help") return run_command(find_command(first), arguments, argc, argv);
    const Command& command = find_command(arguments.front());
    arguments.front() = "--help";
    return run_command(command, arguments, argc, argv);
  } catch (const Error& error) {  // there is no such command
    return say(stderr, fmt::format("lockstep: {}\n", error.what()), error.exit_code());
  }
}

}  // namespace lockstep::launch
