#pragma once
#include <filesystem>
#include <memory>
#include <vector>

#include "comm/mpi_session.h"
#include "core/check.h"
#include "inference/generator.h"
#include "launch/completion_file.h"

namespace lockstep::launch {

// generate --output: completions of many prompts go into a file, by one worker or several, which
// share the prompts; started again, it goes on (docs/decoding.md). All calls are collective where
// there is a session.
class FileGeneration {
 public:
  // As CompletionFile; and throws UsageError when the workers were not given the same work.
  FileGeneration(const std::filesystem::path& output, const Work& work, size_t count,
                 MpiSession* session);

  // Whether the output was there already, and there is nothing to do.
  bool whole() const { return whole_; }

  // Generates those that are missing. ExitCode::stopped when a signal asked for it. What Generator
  // throws; DataError when the disk is full.
  ExitCode run(Generator& generator, const std::vector<GenerationRequest>& requests,
               BatchLimits limits);

 private:
  std::vector<size_t> missing(const std::vector<GenerationRequest>& requests,
                              int64_t context_length) const;
  bool complete();
  double from_first(double value) const;

  const std::filesystem::path output_;
  MpiSession* const session_;
  std::unique_ptr<CompletionFile> file_;  // at the first worker
  bool whole_ = false;
};

}  // namespace lockstep::launch
