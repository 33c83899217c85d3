#pragma once
#include <chrono>
#include <optional>
#include <string>

// How long a run may take, and until when the batch system lets it.
namespace lockstep::launch {

// Seconds of "90", "90m", "2h30m", "1d12h", or Slurm's "MM:SS", "HH:MM:SS", "D-HH", "D-HH:MM" and
// "D-HH:MM:SS". Throws std::invalid_argument.
double to_duration(const std::string& text);

// The Slurm job that this process is part of; empty: none.
std::string slurm_job();

// When Slurm ends this job: by SLURM_JOB_END_TIME, or else as squeue says, which is given ten
// seconds. None: not in a job, no limit, or Slurm does not say.
std::optional<std::chrono::system_clock::time_point> slurm_job_end();

}  // namespace lockstep::launch
